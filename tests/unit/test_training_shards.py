"""Shards and datasets folders, the order of a run, and the examples made of their records."""

import io
import itertools
import logging
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inlay.encoders.content_adapter import EncoderSpec
from inlay.imaging.object_picture import subject_picture
from inlay.imaging.perturb import Perturbation, lookup_table, perturb, relight
from inlay.training.adapters.dataset import TRIES, EpochShuffle, SampleDataset, StepBatchSampler, loader
from inlay.training.adapters.samples import (
    Compositions,
    Insertions,
    ViewPairs,
    decode_picture,
    draw_pair,
    draw_scene_window,
)
from inlay.training.adapters.shards import Shards, index_tar, open_source, pack_pictures, write_shards
from inlay.training.objective import generator_at

READS = EncoderSpec(width=32, size=28)


def png(image):
    data = io.BytesIO()
    Image.fromarray((255 * image).round().byte().numpy()).save(data, "PNG")
    return data.getvalue()


def disc(height=50, width=60, top=14, left=20, size=20, colour=(0.9, 0.2, 0.1)):
    """A picture with a disc, and the disc's mask."""
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.05 * torch.rand(height, width, 3, generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    mask = ((rows - top - size / 2) ** 2 + (columns - left - size / 2) ** 2 <= (size / 2) ** 2).float()
    return torch.where(mask[..., None] > 0, torch.tensor(colour), image), mask


def views(count=3):
    """A record of one object seen `count` times, at different places."""
    record = {}
    for i in range(count):
        image, mask = disc(left=10 + 4 * i)
        record |= {f"{i:03d}.png": png(image), f"{i:03d}.mask.png": png(mask)}
    return record


def triplet(names=("source", "target", "object")):
    with_object, mask = disc()
    without = torch.where(mask[..., None] > 0, torch.tensor(0.3), with_object)
    pictures = dict(zip(names, (without, with_object, with_object[14:34, 20:40]), strict=False))
    return {f"{name}.png": png(image) for name, image in pictures.items()}


def pack(folder: Path, records, per_shard=4):
    write_shards(((f"object{i}", record) for i, record in enumerate(records)), folder, per_shard)
    return open_source(folder)


# -- records


def test_shards_come_back_field_by_field(tmp_path):
    records = [{"000.png": bytes([i]) * (i + 1), "meta.json": b"{}"} for i in range(10)]
    source = pack(tmp_path, records)
    assert source.sizes == [4, 4, 2]
    read = [source.read(block, row) for block, size in enumerate(source.sizes) for row in range(size)]
    assert read == records


def test_shards_of_others_need_no_index(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x/cat.000.jpg", "x/cat.000.mask.png", "x/dog.000.jpg", "y/cat.000.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(name[-3:].encode()))
    assert [list(record) for record in index_tar(tmp_path / "a.tar")] == [
        ["000.jpg", "000.mask.png"], ["000.jpg"], ["000.jpg"],
    ]  # fmt: skip
    source = open_source(tmp_path)
    assert source.sizes == [3]
    assert source.read(0, 0) == {"000.jpg": b"jpg", "000.mask.png": b"png"}


@pytest.mark.parametrize("rest", [0, 700, 2500])
def test_a_shard_cut_short_is_named(tmp_path, rest):
    """Without an index, as from other programs; cut in one picture or the other, or with nothing in it."""
    pack(tmp_path, [{"a.png": bytes(1000)}] * 2)
    (tmp_path / "inlay-shards.json").unlink()
    shard = tmp_path / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:rest])
    with pytest.raises(ValueError, match=r"--data: \S*000000\.tar is no whole tar file .* again, or delete"):
        open_source(tmp_path)


def test_a_record_is_written_before_the_next_is_asked_for(tmp_path):
    """Records may be large: a shard of them never stands in memory."""
    size, behind = 300_000, []

    def records():
        for number in range(7):
            written = sum(path.stat().st_size for path in tmp_path.iterdir())
            behind.append(number * size - written)  # what is not yet on disk
            yield f"object{number}", {"a.png": bytes(size)}

    assert write_shards(records(), tmp_path, 4) == 7
    assert max(behind) < size
    assert open_source(tmp_path).sizes == [4, 3]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (8, [4, 4]), (9, [4, 4, 1])])
def test_shards_are_full_but_the_last_and_none_is_empty(tmp_path, count, sizes):
    assert write_shards(((f"{i}", {"a.png": b"1"}) for i in range(count)), tmp_path, 4) == count
    assert [len(index_tar(path)) for path in sorted(tmp_path.glob("*.tar"))] == sizes
    assert len(list(tmp_path.iterdir())) == len(sizes) + 1  # and the index


def test_a_shard_holds_at_least_a_record(tmp_path):
    with pytest.raises(ValueError, match=r"--per-shard: 0 is too few"):
        pack(tmp_path, [{"a.png": b"1"}], per_shard=0)


def test_nothing_is_left_of_a_shard_that_fails(tmp_path):
    def records():
        for number in range(6):
            yield f"{number}", {"a.png": b"1"}
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_shards(records(), tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]


def test_few_shards_are_open_at_once_and_none_goes_to_another_process(tmp_path):
    import pickle

    source = pack(tmp_path, [{"a.png": bytes([i])} for i in range(20)], per_shard=2)
    for block in range(10):
        source.read(block, 1)
    assert isinstance(source, Shards)
    assert len(source._open) == 4
    again = pickle.loads(pickle.dumps(source))
    assert not again._open
    assert again.read(9, 1) == {"a.png": bytes([19])}


def test_webdataset_reads_what_is_packed(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    records = [views(2), views(1)]
    pack(tmp_path, records)
    read = list(webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False))
    fields = [{key: value for key, value in record.items() if not key.startswith("__")} for record in read]
    assert fields == records


def test_a_datasets_folder_is_read_as_it_was_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ("original_image", "target_image", "object_image")
    pictures = triplet(names)
    rows: dict[str, list] = {name: [{"bytes": pictures[f"{name}.png"], "path": None}] * 3 for name in names}
    features = {name: datasets.Image() for name in names} | {"img_id": datasets.Value("string")}
    rows["img_id"] = list("abc")
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert source.sizes == [3]
    assert source.read(0, 2) == {name: triplet(names)[f"{name}.png"] for name in names}


def test_lists_of_frames_in_a_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    record = views(2)
    several = getattr(datasets, "List", datasets.Sequence)(datasets.Image())
    row = {
        "frames": [[{"bytes": record[f"{i:03d}.png"], "path": None} for i in range(2)]],
        "masks": [[{"bytes": record[f"{i:03d}.mask.png"], "path": None} for i in range(2)]],
    }
    features = datasets.Features({"frames": several, "masks": several})
    datasets.Dataset.from_dict(row, features).save_to_disk(tmp_path / "set")
    assert open_source(tmp_path / "set").read(0, 0) == record


def test_a_row_without_its_picture_gives_way_to_the_next(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    record = views(2)
    frames = [{"bytes": record[f"{i:03d}.png"], "path": None} for i in range(2)]
    masks = [{"bytes": record[f"{i:03d}.mask.png"], "path": None} for i in range(2)]
    several = getattr(datasets, "List", datasets.Sequence)(datasets.Image())
    rows = {"frames": [frames, None, frames], "masks": [masks, masks, [masks[0], None]]}
    table = datasets.Dataset.from_dict(rows, datasets.Features({"frames": several, "masks": several}))
    table.save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    for row, column in ((1, "frames"), (2, "masks")):
        with pytest.raises(ValueError, match=rf"--data: a record holds no picture in its column '{column}'"):
            source.read(0, row)
    examples = SampleDataset(source, 0, ViewPairs(READS, 16))
    with caplog.at_level(logging.WARNING):
        assert [examples[k]["number"] for k in range(3)] == [0, 1, 2]
    assert "Record 1 of block 0 is left out" in caplog.text
    assert "Record 2 of block 0 is left out" in caplog.text


def test_another_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither WebDataset shards"):
        open_source(tmp_path)


def test_the_training_split_of_several_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")

    def rows(value):
        features = datasets.Features({"source": datasets.Image()})
        return datasets.Dataset.from_dict({"source": [{"bytes": value, "path": None}]}, features)

    datasets.DatasetDict({"test": rows(b"no"), "train": rows(b"yes")}).save_to_disk(tmp_path / "both")
    assert open_source(tmp_path / "both").read(0, 0) == {"source": b"yes"}
    datasets.DatasetDict({"test": rows(b"a"), "rest": rows(b"b")}).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"--data: .* has no split 'train', only test, rest"):
        open_source(tmp_path / "none")


# -- packing


def test_loose_pictures_are_packed_beside_folders_of_views(tmp_path):
    image, mask = disc()
    photos = tmp_path / "photos"
    for folder in ("cup 1", "cup 2", ".thumbs"):
        (photos / folder).mkdir(parents=True)
        (photos / folder / "0.png").write_bytes(png(image))
    (photos / "loose.png").write_bytes(png(mask))
    assert pack_pictures(photos, tmp_path / "shards") == 3
    source = open_source(tmp_path / "shards")
    assert [source.read(0, row) for row in range(3)] == [{"000.png": png(x)} for x in (image, image, mask)]
    (photos / "loose.png").unlink()
    assert pack_pictures(photos, tmp_path / "again") == 2


def test_shards_of_an_earlier_packing_are_not_mixed_in(tmp_path):
    pack(tmp_path, [{"a.png": b"1"}] * 9)
    with pytest.raises(ValueError, match="holds shards already"):
        pack(tmp_path, [{"a.png": b"2"}])
    assert open_source(tmp_path).sizes == [4, 4, 1]


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_pictures_stand_as_the_camera_was_held(tmp_path, kind):
    lying = Image.new("RGB", (30, 20), (200, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    (tmp_path / "photos").mkdir()
    lying.save(tmp_path / "photos" / f"cup.{kind}", exif=turned)
    pack_pictures(tmp_path / "photos", tmp_path / "shards")
    (data,) = open_source(tmp_path / "shards").read(0, 0).values()
    assert decode_picture(data).shape == (1, 30, 20, 3)


# -- order


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99), st.integers(0, 3))
@settings(max_examples=50)
def test_every_epoch_reads_every_record_once(sizes, seed, epoch):
    order = EpochShuffle(sizes, seed)
    total = sum(sizes)
    read = [order[k] for k in range(epoch * total, (epoch + 1) * total)]
    assert sorted(read) == [(block, row) for block, size in enumerate(sizes) for row in range(size)]


def test_the_order_follows_from_the_seed_and_changes_with_the_epoch():
    order, again, other = EpochShuffle([30, 30], 1), EpochShuffle([30, 30], 1), EpochShuffle([30, 30], 2)
    first = [order[k] for k in range(60)]
    assert first == [again[k] for k in range(60)]
    assert first != [other[k] for k in range(60)]
    assert first != [order[k] for k in range(60, 120)]


def test_blocks_are_read_one_after_another():
    order = EpochShuffle([50] * 8, 0)
    blocks = [order[k][0] for k in range(400)]
    assert sum(a != b for a, b in itertools.pairwise(blocks)) == 7


@pytest.mark.parametrize(("world", "passes"), [(1, 1), (2, 1), (3, 2)])
def test_processes_share_a_step_and_passes_split_it(world, passes):
    batches = [list(StepBatchSampler(2, 5, 12, passes, rank, world)) for rank in range(world)]
    for step in range(3):
        used = [k for own in batches for part in own[step * passes : (step + 1) * passes] for k in part]
        assert sorted(used) == list(range((step + 2) * 12, (step + 3) * 12))
    with pytest.raises(ValueError, match=r"--batch: 12 is no multiple of 5 processes x 1 passes"):
        StepBatchSampler(0, 1, 12, 1, 0, 5)


def test_a_million_records_need_no_more_memory_than_ten():
    """The order holds one block's rows and the blocks' sizes, whatever the number of records."""
    import tracemalloc

    peaks = []
    for shards in (1, 1000):
        tracemalloc.start()
        order = EpochShuffle([1000] * shards, 0)
        for k in range(0, order.total, max(1, order.total // 50)):
            order[k]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000


# -- examples


@pytest.mark.parametrize(("frames", "window"), [(1, 3), (2, 3), (12, 3)])
def test_pairs_differ_and_lie_within_the_window(frames, window):
    for k in range(40):
        a, b = draw_pair(frames, window, generator_at(0, k))
        assert 0 <= a < frames
        assert 0 <= b < frames
        assert abs(a - b) <= window
        assert (a != b) == (frames > 1)


@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    length=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=120)
def test_windows_lie_in_the_picture_and_hold_the_box_if_they_can(size, corner, share, length, seed):
    from inlay.imaging.boxes import Box

    height, width = size
    tall, wide = max(1, int(share[0] * height)), max(1, int(share[1] * width))
    top, left = int(corner[0] * (height - tall)), int(corner[1] * (width - wide))
    box = Box(top, left, top + tall, left + wide)
    side = max(1, int(length * min(height, width)))
    window = draw_scene_window(box, height, width, side, torch.Generator().manual_seed(seed))
    assert window == window.clamp(height, width)
    assert (window.height, window.width) == (side, side)
    for low, high, first, last in (
        (box.top, box.bottom, window.top, window.bottom),
        (box.left, box.right, window.left, window.right),
    ):
        assert (first <= low and high <= last) or (low <= first and last <= high)


def test_views_are_two_views_of_the_object_on_black():
    example = ViewPairs(READS, side=40)(views(), generator_at(0, 0))
    assert example["object"].shape == (28, 28, 3)
    assert example["target"].shape == (40, 40, 3)
    for picture in example.values():
        assert picture[0, 0].max() < 0.05
        middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
        assert torch.allclose(middle, torch.tensor([0.9, 0.2, 0.1]), atol=0.02)


def test_compositions_ask_for_the_object_in_a_hole_of_its_scene():
    make = Compositions(READS, side=32)
    areas = set()
    for k in range(30):
        example = make(views(), generator_at(0, k))
        hole = example["hole"]
        assert example["target"].shape == (32, 32, 3)
        assert hole.shape == (32, 32)
        assert set(hole.unique().tolist()) <= {0.0, 1.0}
        red = (example["target"][..., 0] > 0.75) & (example["target"][..., 1] < 0.35)
        assert (hole[red] == 1).all()
        assert example["object"][..., 0].max() > 0.6
        areas.add(round(float(hole.mean() / red.float().mean()), 1))
    assert len(areas) > 2  # several levels


@pytest.mark.parametrize(
    "names",
    [
        ("source", "target", "object"),
        ("original_image", "target_image", "object_image"),
        ("source_img", "target_img"),
    ],
)
def test_triplets_of_either_column_set(names):
    example = Insertions(READS, side=32)(triplet(names), generator_at(0, 1))
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "object": (28, 28, 3), "target": (32, 32, 3), "source": (32, 32, 3),
    }  # fmt: skip
    changed = (example["target"] - example["source"]).abs().mean(-1) > 0.15
    assert 0.1 < changed.float().mean() < 0.4
    assert torch.allclose(example["object"][14, 14], torch.tensor([0.9, 0.2, 0.1]), atol=0.02)


def test_insertion_shows_the_object_as_the_node_does():
    """Framed already where nothing cuts it out, and by its alpha channel on black where it has one."""
    record, make = triplet(), Insertions(EncoderSpec(width=32, size=28, margin=0.2), side=32)
    shown = make(record, generator_at(0, 1))["object"]
    assert torch.equal(
        shown, subject_picture(decode_picture(record["object.png"]), None, 28, "original", 0)[0]
    )
    image, mask = disc()
    record["object.png"] = png(torch.cat([image, mask[..., None]], -1))
    shown, cut = make(record, generator_at(0, 1))["object"], decode_picture(record["object.png"])
    assert torch.equal(shown, subject_picture(cut, cut[..., 3], 28, "black", 0.2)[0])
    assert not shown[0, 0].any()
    record["object.png"] = png(torch.cat([image, 0 * mask[..., None]], -1))
    with pytest.raises(ValueError, match="--data: a triplet's object: it is empty"):
        make(record, generator_at(0, 1))


def test_what_is_no_picture_is_named():
    with pytest.raises(ValueError, match="--data: a record's picture is no readable picture"):
        decode_picture(b"GIF?")


def test_an_unusable_record_gives_way_to_the_next(tmp_path, caplog):
    """The same one whatever process reads it, and with the numbers of its own place."""
    records = [views(2) for _ in range(8)]
    records[3] = {"000.png": b"no picture"}
    source = pack(tmp_path, records)
    examples, order = SampleDataset(source, 5, ViewPairs(READS, 16)), EpochShuffle(source.sizes, 5)
    bad = next(k for k in range(8) if order[k] == (0, 3))
    with caplog.at_level(logging.WARNING):
        example = examples[bad]
    assert "Record 3 of block 0 is left out: --data: a record" in caplog.text
    expected = ViewPairs(READS, 16)(source.read(*order[bad + 1]), generator_at(5, bad, 3))
    assert example["number"] == bad
    assert torch.equal(example["target"], expected["target"])
    assert torch.equal(example["target"], SampleDataset(source, 5, ViewPairs(READS, 16))[bad]["target"])


def test_nothing_but_unusable_records_end_the_run(tmp_path):
    source = pack(tmp_path, [{"meta.json": b"{}"}] * 3)
    with pytest.raises(ValueError, match=rf"{TRIES} records in a row .*: --data: a record \(meta\.json\)"):
        SampleDataset(source, 0, ViewPairs(READS, 16))[0]


def test_records_that_do_not_fit_are_named():
    draw = generator_at(0, 0)
    with pytest.raises(ValueError, match=r"holds no picture of a view"):
        ViewPairs(READS, 32)({"meta.json": b"{}"}, draw)
    with pytest.raises(ValueError, match=r"000\.png has neither a mask nor an alpha channel"):
        ViewPairs(READS, 32)({"000.png": png(disc()[0])}, draw)
    with pytest.raises(ValueError, match="none of source, source_img, original_image"):
        Insertions(READS, 32)({"target.png": b""}, draw)
    same = triplet() | {"target.png": triplet()["source.png"]}
    with pytest.raises(ValueError, match="show no difference"):
        Insertions(READS, 32)(same, draw)


def test_an_alpha_channel_is_a_mask():
    image, mask = disc()
    masked = {"000.png": png(image), "000.mask.png": png(mask)}
    alpha = {"000.png": png(torch.cat([image, mask[..., None]], -1))}
    make = ViewPairs(READS, 32)
    one, two = make(masked, generator_at(0, 0)), make(alpha, generator_at(0, 0))
    assert all(torch.equal(one[name], two[name]) for name in one)


# -- perturbation


def test_no_perturbation_changes_nothing():
    image, mask = (part[None] for part in disc())
    still = Perturbation(turn=0, zoom=0, stretch=0, flip=0, light=0, colour=0)
    moved, moved_mask = perturb(image, mask, torch.Generator().manual_seed(0), still)
    assert torch.allclose(moved, image, atol=1e-4)
    assert torch.allclose(moved_mask, mask, atol=1e-4)


def test_the_object_stays_itself_under_perturbation():
    image, mask = (part[None] for part in disc())
    for seed in range(20):
        moved, moved_mask = perturb(image, mask, torch.Generator().manual_seed(seed))
        assert 0.4 * mask.sum() < moved_mask.sum() < 2 * mask.sum()
        inside = moved[moved_mask > 0.99].mean(0)
        assert inside[0] > inside[1] > inside[2] - 0.1  # still red


def test_the_table_rises_and_its_knots_are_hit():
    table = lookup_table(torch.Generator().manual_seed(3), 0.1, 0.1)
    assert (table.diff(dim=0) >= 0).all()
    steps = torch.linspace(0, 1, 5).view(1, 5, 1, 1).expand(1, 5, 1, 3)
    assert torch.allclose(relight(steps, table)[0, :, 0], table, atol=1e-6)
    between = relight(torch.full((1, 1, 1, 3), 0.125), table)[0, 0, 0]
    assert torch.allclose(between, (table[0] + table[1]) / 2, atol=1e-6)


# -- all together


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_what_one_sees_and_a_resumed_run_goes_on(tmp_path, workers):
    source = pack(tmp_path, [views(3) for _ in range(7)])
    make = Compositions(READS, side=16)

    def batches(steps):
        return list(loader(SampleDataset(source, 5, make), steps, workers))

    whole = batches(StepBatchSampler(0, 3, 4))
    assert whole[0]["object"].shape == (4, 28, 28, 3)
    shared = [batches(StepBatchSampler(0, 3, 4, rank=rank, world=2)) for rank in range(2)]
    for step in range(3):
        for rank in range(2):
            assert torch.equal(shared[rank][step]["number"], whole[step]["number"][rank::2])
            assert torch.equal(shared[rank][step]["target"], whole[step]["target"][rank::2])
    resumed = batches(StepBatchSampler(2, 3, 4))
    assert all(torch.equal(resumed[0][name], whole[2][name]) for name in whole[2])
