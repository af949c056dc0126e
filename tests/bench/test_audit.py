"""The static audit finds what it is there to find, and its stored table is of kernels that keep to the budgets."""

import itertools

import pytest

from bench.audit import cuda as audit_cuda
from bench.audit.machine_code import KernelCost, kernel_costs
from bench.audit.table import TABLE, TARGETS, differences, faults
from bench.report.results import read_rows

GOOD = dict.fromkeys(("stack", "spills", "registers"), "0") | {"wide_access_share": "1.0"}
GOOD |= {"backend": "cuda", "target": "sm_90", "kernel": "forward mc", "dtype": "float32", "options": "exp, noise, p"}
GOOD |= {"instructions_per_latent": "85"}
PLANTED = {
    "8 bytes of stack": {"stack": "8"},
    "2 spills": {"spills": "2"},
    "0.5 of the traffic": {"wide_access_share": "0.5"},
    "85.1 instructions per latent, the budget is 85": {"instructions_per_latent": "85.1"},
}


def test_a_planted_fault_is_found():
    assert list(faults(GOOD)) == []
    for message, change in PLANTED.items():
        (found,) = faults(GOOD | change)
        assert found.startswith("cuda sm_90 forward mc float32 exp, noise, p: ")
        assert message in found


def test_a_stored_table_that_is_another_one_is_found():
    new = [GOOD, GOOD | {"dtype": "float16"}]
    assert list(differences(new, new)) == []
    stored = [GOOD | {"registers": "1"}, GOOD | {"dtype": "bfloat16"}]
    found = [text.partition(": ")[2] for text in differences(new, stored)]
    assert sorted(found) == ["not stored", "registers 1 -> 0", "stored, but not there"]


def test_the_stored_table_keeps_to_the_budgets_and_has_every_target():
    stored = read_rows(TABLE)
    assert [fault for line in stored for fault in faults(line)] == []
    for backend in ("triton", "cuda"):
        assert {line["target"] for line in stored if line["backend"] == backend} == TARGETS


def test_any_two_choices_that_meet_in_a_kernel_meet_in_a_row_that_is_told(monkeypatch):
    with pytest.raises(SystemExit, match="not built for sm_100, sm_80; run: make cuda"):
        audit_cuda.covering([GOOD])
    monkeypatch.setattr(audit_cuda, "TARGETS", {GOOD["target"]})
    choices = itertools.product(("forward mc", "backward mc"), ("float32", "float16"), ("exp", "stable"), "ab", "cd")
    rows = [GOOD | {"kernel": k, "dtype": d, "options": ", ".join(rest)} for k, d, *rest in choices]
    rows = [row for row in rows if row["kernel"] != "backward mc" or "a" not in row["options"].split(", ")]
    rows.append(GOOD | {"kernel": "sums", "options": ""})
    told = audit_cuda.covering(rows)
    assert len(told) < len(rows) / 2
    assert all(row in rows for row in told)

    def met(rows):
        keys = [(row["kernel"], row["dtype"], *row["options"].split(", ")) for row in rows]
        return {pair for key in keys for pair in itertools.combinations(enumerate(key), 2)}

    assert met(told) == met(rows)


# The second loop is longer than the main one, with less traffic: a sum that the compiler has unrolled.
SASS = """
	.section	.text.kernel,"ax",@progbits
.L_x_0:
        /*0000*/                   STL [R1], R0 ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0070*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0080*/                   FADD R9, R9, R8 ;
        /*0090*/                   FADD R9, R9, R8 ;
        /*00a0*/               @P1 BRA `(.L_x_2) ;
        /*00b0*/                   EXIT ;
	.section	.text.shared_by_kernels,"ax",@progbits
        /*0000*/                   RET ;
"""
USAGE = "Function kernel:\n  REG:40 STACK:16 SHARED:7 LOCAL:0"


def test_the_main_loop_of_sass_is_read(monkeypatch):
    address_space_lost = SASS.replace("LDG.E R8", "LD.E R8").replace("STG.E.64", "ST.E.64")
    for sass in (SASS, address_space_lost):
        outputs = {"nvdisasm": sass, "cuobjdump": USAGE}
        monkeypatch.setattr("bench.audit.machine_code.run_tool", lambda name, *_, outputs=outputs: outputs[name])
        assert kernel_costs("a.cubin") == {"kernel": KernelCost(40, 16, 1, 7, 4, 128 / 224)}


MANGLED = {
    "15backward_kernelINS0_7VectorsI13__nv_bfloat16EENS0_7HotPathINS0_7OptionsILNS_4DrawE1ELNS_2KLE2ELNS_8Variance"
    "E1EEELb1EEELb1EEEvNS0_8BackwardE": ("backward analytic", "bfloat16", "exp, latent, one p", ""),
    "13sample_kernelINS0_7VectorsI6__halfEENS0_7HotPathINS0_7OptionsILNS_4DrawE0ELNS_2KLE0ELNS_8VarianceE0EEELb0EEEE"
    "EvNS0_6SampleE": ("sample", "float16", "stable, noise", "100.0"),
    "15backward_kernelINS0_7SinglesIdEENS0_7AnyPathELb1EEEvNS0_8BackwardE": (
        "backward, one p",
        "any, in float64",
        "",
        "",
    ),
    "11sums_kernelIfEEvNS0_7ForwardENS0_4SumsE": ("sums", "float32", "", ""),
}


def test_a_cuda_kernel_is_known_by_its_name(monkeypatch, tmp_path):
    cost = KernelCost(40, 0, 0, 0, instructions=800, wide_share=1.0)
    monkeypatch.setattr(audit_cuda, "kernel_costs", lambda _: dict.fromkeys(MANGLED, cost))
    cubin = tmp_path / "_CUDA.1.sm_90.cubin"
    cubin.write_bytes(b"\0Cuda compilation tools, release 13.0, V13.0.88\0")
    rows = audit_cuda.audit(str(cubin))
    columns = ("kernel", "dtype", "options", "instructions_per_latent")
    assert [tuple(str(row[name]) for name in columns) for row in rows] == list(MANGLED.values())
    assert {(row["backend"], row["target"], row["compiler"]) for row in rows} == {("cuda", "sm_90", "nvcc 13.0.88")}
