"""The static audit finds what it is there to find, and its stored table is about the kernels as they are."""

import csv

import pytest

from bench.audit import TABLE, TARGETS, Variant, faults
from bench.sass import amd_cost, cuda_cost


@pytest.fixture
def stored():
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


PLANTED = {
    "stack": ({"stack": "8"}, "8 bytes of stack"),
    "spills": ({"spills": "2"}, "2 spills"),
    "narrow accesses": ({"wide_access_share": "0.5"}, "0.5 of the traffic"),
    "growth": ({"instructions_per_latent": "1000"}, "-> 1000"),
    "unknown": ({"dtype": "float8"}, "not in the stored table"),
}


@pytest.mark.parametrize(("change", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(stored, change, message):
    assert faults(stored, stored) == []
    found = faults([stored[0] | change, *stored[1:]], stored)
    assert len(found) == 1
    assert message in found[0]


def test_the_stored_table_meets_the_budgets(stored):
    assert {row["target"] for row in stored} == set(TARGETS)
    for row in stored:
        if row["target"] == "sm_90":
            budget = 120 if row["kernel"].startswith("backward") else 85
            assert float(row["instructions_per_latent"]) <= budget, Variant(*[row[f] for f in Variant._fields])


SASS = """
.L_x_0:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64] ;
        /*0030*/                   STL [R1], R0 ;
        /*0040*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
"""


def test_the_main_loop_of_sass_is_read(monkeypatch):
    outputs = {"nvdisasm": SASS, "cuobjdump": "Function k: REG:40 STACK:16 SHARED:0 LOCAL:0"}
    monkeypatch.setattr("bench.sass._run", lambda command, *_: outputs[command.rsplit("/", 1)[-1]])
    cost = cuda_cost(b"", "tools", shared=7)
    assert (cost.registers, cost.stack, cost.spills, cost.shared) == (40, 16, 1, 7)
    assert cost.instructions == 5
    assert cost.accesses == {128: 1, 32: 1, 64: 1}
    assert cost.wide_share == 128 / 224


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
