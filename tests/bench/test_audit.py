"""The static audit finds what it is there to find, and its stored table is about the kernels as they are."""

import pytest

from bench.audit import cuda as audit_cuda
from bench.audit import triton as audit_triton
from bench.audit.machine_code import KernelCost, amd_cost, nvidia_costs
from bench.audit.table import Variant, faults, read_table


@pytest.fixture
def stored():
    return read_table()


PLANTED = {
    "stack": ({"stack": "8"}, "8 bytes of stack"),
    "spills": ({"spills": "2"}, "2 spills"),
    "narrow accesses": ({"wide_access_share": "0.5"}, "0.5 of the traffic"),
    "over budget": ({"instructions_per_latent": "85.1"}, "85.1 instructions per latent, the budget is 85"),
    "growth": ({"instructions_per_latent": "84.9"}, "-> 84.9"),
    "unknown": ({"options": "none"}, "not in the stored table"),
    "vanished": ({"options": "none"}, "not there any more"),
}


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize(("change", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(stored, backend, change, message):
    key = {"backend": backend, "target": "sm_90", "kernel": "forward mc", "dtype": "bfloat16"}
    chosen = next(row for row in stored if key.items() <= row.items())
    found = faults([chosen | change if row is chosen else row for row in stored], stored)
    assert any(message in fault for fault in found)
    assert all(fault.startswith(" ".join(key.values())) for fault in found)


def test_the_stored_table_is_whole_and_meets_the_budgets(stored):
    assert faults(stored, stored) == []
    targets = {
        backend: {row["target"] for row in stored if row["backend"] == backend} for backend in ("triton", "cuda")
    }
    assert targets == {"triton": set(audit_triton.TARGETS), "cuda": audit_cuda.TARGETS}


LOOP = """
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
"""
# Longer than the main loop, with less traffic: a sum that the compiler has unrolled.
EPILOGUE = """
.L_x_2:
        /*0060*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0070*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0080*/                   FADD R9, R9, R8 ;
        /*0090*/                   FADD R9, R9, R8 ;
        /*00a0*/               @P1 BRA `(.L_x_2) ;
"""
SASS = f"""
	.section	.text.kernel,"ax",@progbits
.L_x_0:
        /*0000*/                   STL [R1], R0 ;
{LOOP}{EPILOGUE}
        /*00b0*/                   EXIT ;
	.section	.text.shared_by_kernels,"ax",@progbits
        /*0000*/                   RET ;
"""


def test_the_main_loop_of_sass_is_read(monkeypatch):
    outputs = {"nvdisasm": SASS, "cuobjdump": "Function kernel:\n  REG:40 STACK:16 SHARED:7 LOCAL:0"}
    monkeypatch.setattr("bench.audit.machine_code.run_tool", lambda name, *_: outputs[name])
    costs = nvidia_costs("a.cubin")
    assert list(costs) == ["kernel"]
    cost = costs["kernel"]
    assert (cost.registers, cost.stack, cost.spills, cost.shared) == (40, 16, 1, 7)
    assert cost.instructions == 4
    assert cost.accesses == {128: 1, 32: 1, 64: 1}
    assert cost.wide_share == 128 / 224


def test_an_access_that_lost_its_address_space_counts(monkeypatch):
    sass = SASS.replace("LDG.E R8", "LD.E R8").replace("STG.E.64", "ST.E.64")
    outputs = {"nvdisasm": sass, "cuobjdump": "Function kernel:\n  REG:40 STACK:16 SHARED:7 LOCAL:0"}
    monkeypatch.setattr("bench.audit.machine_code.run_tool", lambda name, *_: outputs[name])
    assert nvidia_costs("a.cubin")["kernel"].wide_share == 128 / 224


def test_the_main_loop_of_amd_assembly_is_read():
    assembly = """
.LBB0_1:
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tv_add_f32 v0, v0, v1
\tglobal_store_short v[4:5], v0, off
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
    .private_segment_fixed_size: 0
    .vgpr_count:     50
    .vgpr_spill_count: 0
"""
    cost = amd_cost(assembly, shared=0)
    assert (cost.registers, cost.stack, cost.spills, cost.instructions) == (50, 0, 0, 4)
    assert cost.accesses == {128: 1, 16: 1}


MANGLED = {
    "16backward_kernelINS0_7VectorsI13__nv_bfloat16EENS0_7HotPathILNS_2KLE2ELNS_8VarianceE1ELb0ELb1EEEEEv": (
        ("backward analytic", "bfloat16", "exp, given noise, p"),
        "100.0",
    ),
    "13sample_kernelINS0_7VectorsI6__halfEENS0_7HotPathILNS_2KLE0ELNS_8VarianceE0ELb1ELb0EEEEEvNS0_6SampleE": (
        ("sample", "float16", "stable, philox"),
        "100.0",
    ),
    "22backward_shared_kernelINS0_7SinglesIdEEEEvNS0_8BackwardE": (
        ("backward, one p", "any, in float64", ""),
        "",
    ),
    "11sums_kernelIfEEvNS0_7ForwardENS0_4SumsE": (("sums", "float32", ""), ""),
}


@pytest.mark.parametrize(("symbol", "expected"), MANGLED.items(), ids=["backward", "sample", "backward, one p", "sums"])
def test_a_cuda_kernel_is_known_by_its_name(monkeypatch, tmp_path, symbol, expected):
    cost = KernelCost(40, 0, 0, 0, instructions=800, accesses={128: 1})
    monkeypatch.setattr(audit_cuda, "nvidia_costs", lambda _: {symbol: cost})
    cubin = tmp_path / "_CUDA.1.sm_90.cubin"
    cubin.write_bytes(b"\0Cuda compilation tools, release 13.0, V13.0.88\0")
    (row,) = audit_cuda.audit(str(cubin))
    (kernel, dtype, options), instructions = expected
    assert Variant(*[row[field] for field in Variant._fields]) == ("cuda", "sm_90", kernel, dtype, options)
    assert str(row["instructions_per_latent"]) == instructions
    assert row["compiler"] == "nvcc 13.0.88"


def test_a_library_for_too_few_targets_is_refused(monkeypatch, tmp_path):
    library = tmp_path / "library.so"
    library.touch()
    monkeypatch.setenv("LADDER_KERNELS_CUDA_LIBRARY", str(library))
    monkeypatch.setattr(audit_cuda, "run_tool", lambda *_, folder: (tmp_path / "library.1.sm_90.cubin").touch())
    with pytest.raises(SystemExit, match="not built for sm_100, sm_80; run: make cuda"):
        audit_cuda.extract_cubins(str(tmp_path))
