"""Checkpoints: rows from several ranks, whole or not there, written behind the training's back."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path

import pytest
import torch

from plumbline.api.stages.training import AdapterSpec, CheckpointSpec, OptimizerSpec, ParallelismSpec, TrainingSpec
from plumbline.builtin import skills
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.training.batch import MicroBatch, Sequence, micro_batches
from plumbline.training.checkpoint import CheckpointStore, CheckpointWriter, Piece
from plumbline.training.encode import encode_chat
from plumbline.training.engine import TrainEngine
from plumbline.training.export import write_weights
from plumbline.training.loop import Interrupted, train
from plumbline.training.model import build_trainable
from plumbline.training.objectives.sft import sft
from plumbline.training.share import balanced, encode_rows, own_share
from plumbline.training.world import World
from support.ranks import run_ranks

ALONE = World(0, 1, torch.device("cpu"))
REFERENCE = ModelReference(TINY)
OPTIMIZER = OptimizerSpec(learning_rate=1e-3)


def written(store: CheckpointStore, step: int, ranks: int = 3, saver: int = 7, leave_out: int | None = None) -> torch.Tensor:
    """A checkpoint whose 8 rows lie with three ranks (3, 3, 2) beside a number that rank 0 keeps; returns the rows."""
    whole = torch.arange(8.0 * 2).view(8, 2) + step
    each = -(-8 // ranks)
    for rank in range(ranks):
        pieces = {"parameters/w": Piece(whole[rank * each : (rank + 1) * each], rank * each, (8, 2))}
        if rank == 0:
            pieces["optimizer/w|step"] = Piece(torch.tensor(float(step)), 0, ())
        if rank == leave_out:
            continue
        writer = CheckpointWriter(store, rank, ranks, saver)
        writer.save(step, pieces, [{"step": i + 1} for i in range(step)], {"r": 4})
        writer.wait()
    return whole


@pytest.mark.parametrize("uri", ["{tmp_path}", "memory://{unique}"])
def test_any_rows_can_be_read_whoever_wrote_them(uri: str, tmp_path: Path) -> None:
    store = CheckpointStore(uri.format(tmp_path=tmp_path, unique=uuid.uuid4()))
    whole = written(store, 5)
    found = store.latest()
    assert found is not None
    assert (found.step, len(found.history), found.adapter_config) == (5, 5, {"r": 4})
    assert found.shapes == {"parameters/w": (8, 2), "optimizer/w|step": ()}
    for start in range(9):
        for stop in range(start, 9):
            assert torch.equal(found.rows("parameters/w", start, stop), whole[start:stop])
    assert found.rows("optimizer/w|step") == 5
    assert torch.equal(found.parameters["w"], whole)
    assert set(found.optimizer) == {"w|step"}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["no shard", "no note", "no state", "damaged shard", "damaged note", "cut shard", "cut state"]
)
def test_what_is_not_whole_is_passed_over(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(str(tmp_path))
    written(store, 3)
    written(store, 6)
    folder = tmp_path / "step-00000006"
    shard, note, state = folder / "shard-0000000007-00001.safetensors", next(folder.glob("*1.json")), folder / "state.json"
    match kind.split():
        case ["no", what]:
            {"shard": shard, "note": note, "state": state}[what].unlink()
        case ["damaged", what]:
            damage({"shard": shard, "note": note}[what])
        case ["cut", what]:
            path = {"shard": shard, "state": state}[what]
            path.write_bytes(path.read_bytes()[:-5])
    found = store.latest()
    assert found is not None
    assert found.step == 3
    assert "step-00000006 is damaged" in caplog.text


def test_shards_of_two_groups_are_never_mixed(tmp_path: Path) -> None:
    """A group died while it wrote step 6; its successor, of another size, died there too, and a third was whole."""
    store = CheckpointStore(str(tmp_path))
    written(store, 3)
    written(store, 6, leave_out=1)
    assert store.latest().step == 3  # type: ignore[union-attr]
    written(store, 6, ranks=2, saver=8, leave_out=1)
    assert store.latest().step == 3  # type: ignore[union-attr]
    whole = written(store, 6, ranks=2, saver=9)
    assert torch.equal(store.latest().parameters["w"], whole)  # type: ignore[union-attr]


def test_old_ones_go_only_when_new_ones_are_whole(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (1, 2, 3):
        written(store, step)
    kept = sorted(path.name for path in tmp_path.iterdir())
    # Rank 0 looks before the others have written theirs, so that one more may stay.
    assert kept == ["step-00000001", "step-00000002", "step-00000003"]
    store.prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == kept[1:]
    written(store, 4, leave_out=2)
    store.prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept[1:], "step-00000004"], "4 is not whole"
    written(store, 5)
    store.prune(protected={2})
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "3", "4", "5"]


def test_a_failed_write_is_heard_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    writer = CheckpointWriter(CheckpointStore(str(tmp_path / "file")), 0, 1, 1)
    writer.save(1, {}, [], None)
    with pytest.raises(OSError, match="file"):
        writer.wait()
    writer.wait()  # said once


def test_shares_are_alike_and_whole() -> None:
    draw = random.Random(0)
    for parts in (1, 2, 3, 8):
        sizes = [draw.randint(1, 2000) for _ in range(64)]
        shares = balanced(sizes, parts)
        assert sorted(place for share in shares for place in share) == list(range(64))
        assert all(share == sorted(share) for share in shares)
        sums = [sum(sizes[place] for place in share) for share in shares]
        assert max(sums) - min(sums) <= max(sizes)
    assert balanced([], 2) == [[], []]


def _encoded(folder: str) -> None:
    world = World.current()
    asked: list[int] = []

    def encode(row: int) -> list[Sequence] | None:
        asked.append(row)
        return None if row == 4 else [Sequence([row] * (row + 1), [True] * (row + 1))]

    units = encode_rows(world, [5, 4, 3, 9, 1], encode)
    assert [unit and (unit[0].ids[0], unit[0].row) for unit in units] == [(5, 5), None, (3, 3), (9, 9), (1, 1)]
    assert asked == [5, 4, 3, 9, 1][world.rank :: 2], "each row is encoded once"
    mine = own_share(world, [unit for unit in units if unit])
    Path(folder, str(world.rank)).write_text(json.dumps([unit[0].row for unit in mine]))


def test_ranks_encode_each_row_once_and_share_out_by_length(tmp_path: Path) -> None:
    run_ranks(_encoded, str(tmp_path))
    shares = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert sorted(map(sorted, shares)) == [[1, 9], [3, 5]]


def chats(count: int) -> list[Sequence]:
    tokenizer = load_tokenizer(REFERENCE)
    return [
        encode_chat(tokenizer, [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}], 128)
        for t in skills.tasks(count, split="train", seed=0)
    ]


def engine(method: str, world: World = ALONE, **parallelism: object) -> TrainEngine:
    model = build_trainable(REFERENCE, TrainingSpec(adapter=AdapterSpec(method=method), max_length=128), "sft")  # type: ignore[arg-type]
    return TrainEngine(model, OPTIMIZER, world, ParallelismSpec.model_validate(parallelism))


def trained(one: TrainEngine, folder: str, steps: int = 4) -> None:
    sequences = chats(16)

    def source(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        units = [[sequences[(4 * step + i) % 16]] for i in range(4)]
        return [micro_batches(own_share(one.world, units), micro_batch_tokens=256)], {}

    store = CheckpointStore(folder)
    train(one, source, sft, steps, store, CheckpointSpec(every_steps=2), 0, lambda *_: None)


def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    trained(engine("lora"), str(tmp_path / "straight"))
    answers = iter([False, False, True])  # after the third step, which no rule says to save
    with pytest.raises(Interrupted):
        trained(engine("lora", World(0, 1, torch.device("cpu"), lambda: next(answers))), str(tmp_path / "stopped"))
    assert CheckpointStore(str(tmp_path / "stopped")).latest().step == 3  # type: ignore[union-attr]
    trained(engine("lora"), str(tmp_path / "stopped"))
    ends = [CheckpointStore(str(tmp_path / name)).latest() for name in ("straight", "stopped")]
    assert all(torch.equal(p, ends[1].parameters[name]) for name, p in ends[0].parameters.items())  # type: ignore[union-attr]


def _whole(folder: str, parallelism: dict[str, object], steps: int) -> None:
    trained(engine("none", World.current(), **parallelism), folder, steps)


def test_whole_weights_are_sharded_go_on_at_another_size_and_are_a_plain_model(tmp_path: Path) -> None:
    """Two sharded ranks, then one, against one alone; what is written loads without Plumbline and computes the same."""
    from transformers import AutoModelForCausalLM

    run_ranks(_whole, str(tmp_path / "moved"), {"sharding": "fsdp2"}, 2)
    shards = sorted((tmp_path / "moved" / "step-00000002").glob("*.safetensors"))
    assert len(shards) == 2
    assert 0.9 < shards[0].stat().st_size / shards[1].stat().st_size < 1.1
    moved = engine("none")
    trained(moved, str(tmp_path / "moved"))
    alone = engine("none")
    trained(alone, str(tmp_path / "alone"))
    for name, p in alone.full_parameters().items():
        torch.testing.assert_close(moved.full_parameters()[name], p, atol=2e-4, rtol=1e-3)
    done = CheckpointStore(str(tmp_path / "alone")).latest()
    assert done is not None
    assert done.adapter_config is None
    write_weights(done, REFERENCE, tmp_path / "weights")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    ids = torch.tensor([chats(1)[0].ids])
    start = load_base(REFERENCE)(ids).logits
    for p in alone.model.parameters():
        p.data = p.data.bfloat16().float()  # what the base's files hold
    assert torch.equal(plain(ids).logits, alone.model.causal(ids).logits)
    assert (plain(ids).logits - start).abs().max() > 1e-2
