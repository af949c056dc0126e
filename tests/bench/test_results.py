"""The table of the benchmark: its columns, its file, and what an interruption leaves of it."""

import csv
from types import SimpleNamespace

import pytest
import torch

from bench.conftest import Session
from bench.kernels.cases import CPU, Case
from bench.kernels.figures import Figures
from bench.kernels.run import Result
from bench.measure import run_info
from bench.measure.run_info import default_path, environment, machine
from bench.report.results_file import COLUMNS, ResultsFile, as_row

CASE = Case("level 4x4 b2", 2, (4, 4), 8, torch.bfloat16)
DEVICE = torch.device(CPU)
GOOD = Result(
    "cpp, Philox",
    "step",
    "eager",
    "ok",
    seconds=(3e-6, 1e-6, 2e-6, 4e-6, 5e-6),
    bytes=6000,
    copy_bytes_per_second=4e9,
    figures=Figures(None, 3 << 20, 3, 0),
)
SKIPPED = Result("cuda", "step", "eager", "skipped", "there is no GPU")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_these_and_no_others(tmp_path):
    # Plots and tables are made from exactly these.
    assert ",".join(COLUMNS) == (
        "case,provider,pass,mode,status,reason,batch,channels,space,dtype,layout,kl,latents,median_us,p20_us,p80_us,"
        "rounds,bytes,gb_per_s,copy_gb_per_s,copy_share,peak_mib,kept_mib,launches,synchronisations,"
        "instructions_per_latent,device,threads,torch,triton,careamics,ladder_kernels,commit,date"
    )
    file = ResultsFile(tmp_path / "new" / "x.csv")
    file.append([as_row(CASE, GOOD, environment(DEVICE))])
    file.append([as_row(CASE, SKIPPED, environment(DEVICE))])
    good, skipped = read(file.path)
    assert list(good) == list(COLUMNS)
    described = {"case": "level 4x4 b2", "batch": "2", "channels": "8", "space": "4x4", "latents": "256"}
    described |= {"dtype": "bfloat16", "layout": "nchw", "kl": "mc", "torch": torch.__version__}
    measured = {"median_us": "3.0", "p20_us": "1.8", "p80_us": "4.2", "rounds": "5", "bytes": "6000"}
    measured |= {"gb_per_s": "2.0", "copy_gb_per_s": "4.0", "copy_share": "0.5", "kept_mib": "3.0", "launches": "3"}
    measured |= {"synchronisations": "0", "peak_mib": "", "instructions_per_latent": ""}
    assert described.items() <= good.items()
    assert described.items() <= skipped.items()
    assert measured.items() <= good.items()
    assert {skipped[name] for name in measured} == {""}
    assert (skipped["status"], skipped["reason"]) == ("skipped", "there is no GPU")
    assert int(good["threads"]) == torch.get_num_threads()


@pytest.mark.parametrize(
    ("name", "short"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"), ("AMD Instinct MI300X", "mi300x")],
)
def test_a_gpu_has_a_short_name(name, short, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert machine(torch.device("cuda")) == short


def test_a_quick_look_does_not_replace_what_is_kept(monkeypatch):
    monkeypatch.setattr(run_info.platform, "machine", lambda: "x86_64")
    kept, quick = (default_path(DEVICE, quick=quick) for quick in (False, True))
    assert kept.name == quick.name
    assert kept.name.startswith("x86-")
    assert kept.name.endswith(".csv")
    assert kept.parent.parts[-2:] == ("bench", "results")
    assert quick.parent.parts == ("out", "bench")


def test_a_row_is_in_the_file_at_once_and_a_provider_without_times_has_one(tmp_path):
    options = {"quick": True, "device": DEVICE, "results": tmp_path / "x.csv"}
    session = Session(SimpleNamespace(getoption=options.__getitem__))
    for result in (GOOD, SKIPPED, SKIPPED):
        session.append_once(CASE, result)
    assert [row["provider"] for row in read(tmp_path / "x.csv")] == [GOOD.provider, SKIPPED.provider]
