"""Trackers through their own libraries, read back; throughput against counted FLOPs; the page of curves."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from wandb.proto.wandb_internal_pb2 import Record

from plumbline.api.stages.sft import SftSpec
from plumbline.artifacts import ArtifactWriter, Workspace
from plumbline.display import progress_words
from plumbline.errors import InvalidInput, InvalidRun
from plumbline.plan import Plan, check_libraries, make_plan
from plumbline.progress import Event, Reporter
from plumbline.run_file import validate_run
from plumbline.stage import StageContext
from plumbline.training import tracking
from plumbline.training.page import page, summary
from plumbline.training.throughput import Cost, Meter, Work, peak_flops
from plumbline.training.tracking import tracked
from plumbline.training.tracking.clock import KEPT, Clock
from plumbline.training.tracking.feed import Feed, in_order
from plumbline.training.tracking.tracker import Row, flat
from plumbline.training.tracking.wandb import _last_offline_step, log_records
from plumbline.training.world import World
from support.patience import wait_for

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes long to import a library, which is no reason to give it up here."""
    monkeypatch.setattr(tracking, "PATIENCE", 240.0)


def row(step: int, **more: float) -> Row:
    return {"step": step, "loss": 1 / step, "gradNorm": 2.0, **more}


def plan(folder: Path, sft: dict[str, Any]) -> Plan:
    """data → sft."""
    stages = [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}, {"name": "sft", "sft": sft}]
    spec = {"model": {"base": "builtin://tiny"}, "workspace": {"uri": str(folder / "workspace")}, "stages": stages}
    kind = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "small"}}
    return make_plan(validate_run(kind | {"spec": spec}))


def context(planned: Plan, sink: Callable[[Event], None] = lambda event: None) -> StageContext:
    checkpoints = f"{planned.workspace.uri}/checkpoints/{planned.fingerprints['sft']}"
    writer = ArtifactWriter(Path(planned.workspace.root))
    return StageContext(planned, planned.graph["sft"], {}, writer, checkpoints, Reporter("sft", sink))


def attempt(planned: Plan, steps: Iterable[int], history: list[Row], dies: bool = False) -> None:
    """One attempt of the stage: it reports these steps, from a checkpoint with this history."""
    spec = planned.graph["sft"].spec
    assert isinstance(spec, SftSpec)
    here = context(planned)
    try:
        with tracked(here, spec, lambda: history):
            for step in steps:
                here.report.step(step, 9, {**{k: v for k, v in row(step).items() if k != "step"}, "tokensPerSecond": 100.0})
            if dies:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert dies


def whole(last: int) -> list[Row]:
    return [row(step) for step in range(1, last + 1)]


# What a stage with trackers goes through: killed after step 5 with a checkpoint at 4, whose successor loses the report of step 6 but
# has it in its checkpoint; in the end the history is there.
def two_attempts(planned: Plan) -> None:
    attempt(planned, [1, 2, 3, 4, 5], whole(4), dies=True)
    attempt(planned, [5, 7, 8, 7, 8, 9], whole(9))


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    planned = plan(tmp_path, {"tracking": {"tensorboard": {"folder": str(tmp_path / "board")}}, "maxSteps": 9})
    two_attempts(planned)
    (folder,) = (tmp_path / "board" / "small").iterdir()
    assert folder.name == f"sft-{planned.fingerprints['sft'][:8]}"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for name in ("loss", "gradNorm"):
        assert [event.step for event in events.Scalars(name)] == list(range(1, 10))
    assert events.Scalars("loss")[3].value == 0.25
    (text,) = events.Tensors("stage/text_summary")
    assert '"maxSteps": 9' in text.tensor_proto.string_val[0].decode()


def test_tensorboard_repairs_a_step_that_is_there_in_part(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    planned = plan(tmp_path, {"tracking": {"tensorboard": {}}})  # in the workspace
    folder = tmp_path / "workspace" / "tensorboard" / "small" / f"sft-{planned.fingerprints['sft'][:8]}"
    with SummaryWriter(str(folder)) as writer:
        for step in (1, 2):
            writer.add_scalar("loss", 1 / step, step)
        writer.add_scalar("gradNorm", 2.0, 1)  # killed before that of step 2
    attempt(planned, [3], whole(3))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for name in ("loss", "gradNorm"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3]


def test_mlflow_has_one_run_with_every_step_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    planned = plan(
        tmp_path, {"optimizer": {"learningRate": 1e-3}, "tracking": {"mlflow": {"uri": uri, "experiment": "mine"}}}
    )
    two_attempts(planned)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("loss", "gradNorm"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(metric.step for metric in history) == list(range(1, 10))
    assert run.info.status == "FINISHED"
    assert run.data.params["spec.optimizer.learningRate"] == "0.001"
    assert run.data.params["model.base"] == "builtin://tiny"
    assert run.data.tags["plumbline.fingerprint"] == planned.fingerprints["sft"]
    # Another spec is another run of the same experiment.
    attempt(plan(tmp_path, {"tracking": {"mlflow": {"uri": uri, "experiment": "mine"}}}), [1], whole(1))
    assert len(client.search_runs([experiment.experiment_id])) == 2


def offline_steps(workspace: Path) -> list[tuple[str, list[int]]]:
    """(run id, its steps) of each offline file, in order."""
    found = []
    for path in sorted(workspace.glob("wandb/offline-run-*/*.wandb")):
        records = [Record.FromString(data) for data in log_records(path.read_bytes())]
        steps = [
            int(item.value_json)
            for record in records
            for item in record.history.item
            if "_step" in (item.key, *item.nested_key)
        ]
        found.append((next(record.run.run_id for record in records if record.HasField("run")), steps))
    return found


def test_wandb_offline_has_every_step_once_also_what_a_kill_took(tmp_path: Path) -> None:
    planned = plan(tmp_path, {"tracking": {"wandb": {"mode": "offline", "project": "mine"}}})
    attempt(planned, [1, 2, 3, 4, 5], whole(4), dies=True)
    (path,) = (tmp_path / "workspace").glob("wandb/offline-run-*/*.wandb")
    ends = [i for i, (_, steps) in enumerate(_cuts(path)) if steps == [1, 2, 3]]
    path.write_bytes(_cuts(path)[ends[-1]][0])  # a kill takes what was not on disk yet, even half a record
    time.sleep(1.1)  # the folder's name has seconds
    attempt(planned, [5, 7, 8, 7, 8, 9], whole(9))
    id = planned.fingerprints["sft"]
    assert offline_steps(tmp_path / "workspace") == [(id, [1, 2, 3]), (id, [4, 5, 6, 7, 8, 9])]


def _cuts(path: Path) -> list[tuple[bytes, list[int]]]:
    """The file cut at every length, and the steps that are whole in it."""
    data = path.read_bytes()
    found: list[tuple[bytes, list[int]]] = []
    for end in range(7, len(data) + 1, 40):
        records = [Record.FromString(part) for part in log_records(data[:end])]
        steps = [int(i.value_json) for r in records for i in r.history.item if "_step" in (i.key, *i.nested_key)]
        found.append((data[:end], steps))
    return found


def test_records_longer_than_a_block_are_read_whole(tmp_path: Path) -> None:
    import wandb

    settings = wandb.Settings(console="off", silent=True, x_disable_meta=True, x_disable_stats=True)
    run = wandb.init(project="p", mode="offline", dir=tmp_path, reinit="create_new", settings=settings)
    for step in (1, 2, 3):
        run.log({f"metric {i} with a long name of its own": float(i) for i in range(2000)}, step=step, commit=True)
    run.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert path.stat().st_size > 3 * 32768
    wandb.teardown()
    assert [steps for _, steps in offline_steps(tmp_path)] == [[1, 2, 3]]
    assert _last_offline_step(tmp_path, run.id) == 3


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(0, 30))
def test_steps_come_in_order_each_once_and_gaps_are_filled(steps: list[int], last: int) -> None:
    rows = [{"step": step, "live": float(i)} for i, step in enumerate(steps)]
    found = in_order(rows, last, lambda: [{"step": step, "live": -1.0} for step in range(1, 31)])
    assert [r["step"] for r in found] == list(range(last + 1, max([*steps, last]) + 1))
    for r in found:
        first = next((i for i, step in enumerate(steps) if step == r["step"]), -1)
        assert r["live"] == first  # what was reported counts, the first time


class Moody:
    """A tracker that fails at first."""

    def __init__(self, failures: int) -> None:
        self.last, self.rows, self.failures, self.closed = 0, list[Row](), failures, False

    def log(self, rows: Sequence[Row]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is away")
        self.rows += rows
        self.last = int(rows[-1]["step"])

    def close(self, ok: bool) -> None:
        self.closed = ok


def test_a_tracker_that_comes_back_gets_everything(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Moody(failures=3)
    feed = Feed("x.tracking.moody", lambda: tracker, list, pace=0.01, retry=0.01)
    for step in (1, 2, 3):
        feed.add(row(step))
    wait_for(lambda: len(tracker.rows) == 3)
    feed.add(row(4))
    feed.end(True)
    feed.wait(30)
    assert [r["step"] for r in tracker.rows] == [1, 2, 3, 4]
    assert tracker.closed
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "x.tracking.moody fails: the server is away; training goes on, and its steps are offered again later"
    ]


def test_a_server_that_is_away_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    planned = plan(tmp_path, {"tracking": {"mlflow": {"uri": "http://127.0.0.1:9"}}})
    events: list[Event] = []
    here = context(planned, events.append)
    spec = planned.graph["sft"].spec
    assert isinstance(spec, SftSpec)
    with tracked(here, spec, lambda: whole(3)):
        here.report.say("training")
        here.report.step(1, 3, {"loss": 1.0})
        wait_for(lambda: any("tracking.mlflow fails" in r.message for r in caplog.records))
        here.report.step(2, 3, {"loss": 0.5})
        here.report.step(3, 3, {"loss": 0.3})
    said = [event.message for event in events if "spec.stages[1].sft.tracking.mlflow fails" in event.message]
    assert said
    assert len(set(said)) == 1
    assert "3 steps were not logged there" in caplog.text


def test_a_tracker_that_hangs_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    def hang() -> Any:
        time.sleep(3600)

    feed = Feed("x.tracking.slow", hang, list)
    feed.add(row(1))
    feed.end(True)
    feed.wait(0.05)
    assert "x.tracking.slow does not answer; 1 steps were not logged there" in caplog.text


def test_what_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    planned = plan(tmp_path, {"tracking": {"wandb": {"keySecret": "tracker"}}})
    with pytest.raises(
        InvalidInput, match=r"sft\.tracking\.wandb\.keySecret: the environment variable WANDB_API_KEY is not set"
    ):
        attempt(planned, [], [])
    offline = SftSpec.model_validate({"tracking": {"wandb": {"mode": "offline"}}}, by_name=False, by_alias=True)
    assert offline.tracking is not None
    with pytest.raises(InvalidInput, match=r"wandb\.mode: offline writes files, and the workspace memory://w is no folder"):
        tracking._check(offline.tracking, Workspace("memory://w"), "x")
    for uri in (
        "https://user:word@server",
        "http://server/?key=1",
        "sqlite:///mlflow.db",
        "ftp://server",
        "postgresql://u@h/d",
    ):
        with pytest.raises(InvalidRun, match=r"tracking\.mlflow\.uri"):
            plan(tmp_path, {"tracking": {"mlflow": {"uri": uri}}})


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"tensorboard": {}, "mlflow": {"uri": "sqlite:////tmp/m.db"}, "wandb": {}}
    planned = plan(tmp_path, {"tracking": block})
    check_libraries(planned, planned.graph.nodes)
    for module in ("wandb", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, module, None)  # as Python has it for what must not be imported
    with pytest.raises(InvalidRun) as error:
        check_libraries(planned, planned.graph.nodes)
    one, other = error.value.problems
    assert one.path == "spec.stages[1].sft.tracking.wandb"
    assert "pip install 'plumbline[wandb]'" in one.message
    assert (other.path, "plumbline[mlflow]" in other.message) == ("spec.stages[1].sft.tracking.mlflow.uri", True)


def test_trackers_change_no_fingerprint_and_bring_their_secrets(tmp_path: Path) -> None:
    block = {"mlflow": {"uri": "https://m", "keySecret": "one"}, "wandb": {"keySecret": "two"}}
    with_trackers, without = plan(tmp_path, {"tracking": block}), plan(tmp_path, {})
    assert with_trackers.fingerprints == without.fingerprints
    assert with_trackers.graph["sft"].spec.secrets() == {
        "MLFLOW_TRACKING_TOKEN": ("one", "apiKey"),
        "WANDB_API_KEY": ("two", "apiKey"),
    }
    assert without.graph["sft"].spec.secrets() == {}


def test_times_of_earlier_attempts_are_kept(tmp_path: Path) -> None:
    uri = str(tmp_path / "checkpoints")
    first = Clock(uri)
    first.add(1, {"loss": 1.0, "tokensPerSecond": 10.0, "peakMemoryGiB": 1.0})
    first.add(2, {"loss": 1.0})
    first.keep()
    second = Clock(uri)
    second.add(3, {"tokensPerSecond": 20.0})
    assert second.rows == {1: {"tokensPerSecond": 10.0, "peakMemoryGiB": 1.0}, 3: {"tokensPerSecond": 20.0}}
    (tmp_path / "checkpoints" / KEPT).write_text("{")
    assert Clock(uri).rows == {}


def test_blocks_within_blocks_become_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [1]}}, "e": "x"}) == {"a.b": "1", "a.c.d": "[1]", "e": "x"}


TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 200}


def counted(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """FLOPs that torch sees in a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [False, True])
def test_cost_is_what_torch_counts(tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**TINY, num_hidden_layers=8, attn_implementation="eager", tie_word_embeddings=tied)
    model, ids = LlamaForCausalLM(config), torch.randint(0, 200, (2, 60))
    # Eager attention also compares with later tokens, and logits are computed everywhere.
    work = Work(tokens=120, pairs=2 * 60 * 60, targets=120)
    assert Cost.of(model).flops(work) == pytest.approx(counted(model, ids), rel=0.01)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    cost = Cost.of(adapted.get_base_model())
    assert cost.flops(work) == pytest.approx(counted(adapted, ids), rel=0.03)  # the first layer's input needs no gradient
    assert Cost.of(adapted.get_base_model(), head=False).per_target == 0


def test_cost_of_a_mixture_counts_the_chosen_experts() -> None:
    config = MixtralConfig(**TINY, num_hidden_layers=1, num_local_experts=8, num_experts_per_tok=2)
    model = MixtralForCausalLM(config)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert experts == 8 * 3 * 64 * 128
    rest = sum(p.numel() for p in model.parameters()) - experts - 2 * 64 * 200
    assert Cost.of(model).per_token == 6 * (rest + experts / 4)


def test_meter_reads_what_was_done_since_the_last_reading() -> None:
    times = iter([10.0, 12.0, 13.0])
    meter = Meter(Cost(6.0, 1.0, 2.0), CPU, lambda: next(times))
    work = Work(100, 50, 10) + Work(100, 50, 10)
    first = meter.read(work)
    assert first["tokensPerSecond"] == 100
    assert "mfu" not in first  # nobody knows a CPU's peak
    assert 0.01 < first["peakMemoryGiB"] < 1000
    assert meter.read(work + Work(30, 0, 0))["tokensPerSecond"] == 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mfu_of_matrix_products_is_below_one() -> None:
    device = torch.device("cuda")
    if peak_flops(torch.cuda.get_device_name()) is None:
        pytest.skip("a GPU whose peak is not in the table")
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    a @ a
    torch.cuda.synchronize()
    meter = Meter(Cost(2.0 * 8192 * 8192, 0.0, 0.0), World(0, 1, device))
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    found = meter.read(Work(tokens=20 * 8192))
    assert 0.3 < found["mfu"] < 1.0
    assert found["peakMemoryGiB"] >= 2 * 8192**2 * 2 / 2**30


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 836),
        ("NVIDIA H200", 989), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("NVIDIA A10", 125), ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA A10G", None), ("Tesla V100-SXM2-16GB", None),
    ],
)  # fmt: skip
def test_peaks_by_device(name: str, tera: float | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def test_page_shows_every_curve_and_setting() -> None:
    history = [{**row(step), "<margin>": float(step), **{f"m{i}": 1.0 for i in range(7)}} for step in range(1, 4)]
    clock = {step: {"tokensPerSecond": 1000.0 * step, "mfu": 0.25} for step in (2, 3)}
    text = page("a & b", history, clock, SftSpec(max_steps=3))
    assert "Training: a &amp; b" in text
    assert "3 steps. 2,500 tokens a second, 25.0% of the device" in text
    for name in ("loss", "gradNorm", "tokensPerSecond", "mfu", "&lt;margin&gt;", *(f"m{i}" for i in range(7))):
        assert f">{name}</text>" in text
    assert "<margin>" not in text
    assert "<td>maxSteps</td><td>3</td>" in text
    assert "<script" not in text
    assert "http-equiv" in text
    assert summary(clock) == {"tokensPerSecond": 2500.0, "mfu": 0.25}
    assert "Throughput" not in page("x", history, {}, SftSpec())


def test_progress_says_tokens_a_second() -> None:
    event = Event("s", "training", 1, 2, metrics={"loss": 0.5, "tokensPerSecond": 12345.6})
    assert progress_words(event) == "training · 1/2 · loss 0.5 · 12,346 tokens/s"
