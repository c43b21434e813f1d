"""`python -m inlay evaluate`: measures against known pictures, what is left out, what is said of errors."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inlay.__main__ import main
from inlay.evaluation.benchmark_datasets import Case
from inlay.evaluation.distances import frechet_distance, load_dreamsim
from inlay.evaluation.score import Measures, find_result, find_results, score_folder
from inlay.imaging.boxes import Box

HOLE = (10, 8, 26, 24)  # x1, y1, x2, y2 in a picture of 48 x 32


class MeanColour:
    """The simplest encoder: a picture's mean colour as a unit vector, grey being zero."""

    name, size = "mean colour", 16

    def __call__(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)) - 0.5, dim=-1)


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


@pytest.fixture
def world(tmp_path):
    """MureCom with one category of two noisy rooms and a red subject, and two methods' results on it."""
    rng = np.random.default_rng(0)
    category = tmp_path / "data" / "Mug"
    lines = []
    for number in range(2):
        room = rng.integers(0, 255, (32, 48, 3))
        save(category / "bg" / f"{number}.jpg", room)
        lines.append(f"Mug {number}.jpg {' '.join(map(str, HOLE))}")
        jpeg = np.array(Image.open(category / "bg" / f"{number}.jpg"))
        for method, colour in (("red", (255, 0, 0)), ("cyan", (0, 255, 255))):
            made = jpeg.copy()
            made[HOLE[1] : HOLE[3], HOLE[0] : HOLE[2]] = colour
            save(tmp_path / method / "Mug" / "fg1" / f"{number}.png", made)
    (category / "bg" / "bbox.txt").write_text("\n".join(lines), encoding="utf-8")
    save(category / "fg1" / "0.jpg", np.broadcast_to((255, 0, 0), (16, 16, 3)))
    save(category / "fg1" / "0.png", np.full((16, 16), 255))
    return tmp_path


def cases_of(world):
    from inlay.evaluation.benchmark_datasets import read_cases

    return read_cases("murecom", world / "data")


def test_the_right_subject_scores_one_its_opposite_minus_one_and_an_untouched_room_one(world):
    measures = Measures(encoders={"colour": MeanColour()})
    for method, likeness in (("red", 1), ("cyan", -1)):
        scores = score_folder(world / method, cases_of(world), measures)
        assert list(scores) == ["Mug/fg1/0", "Mug/fg1/1"]
        for values in scores.values():
            assert values["colour"] == pytest.approx(likeness, abs=0.01)
            assert values["SSIM"] == pytest.approx(1, abs=1e-4)


def test_a_touched_room_scores_less_and_the_hole_does_not_count(world):
    path = world / "red" / "Mug" / "fg1" / "0.png"
    made = np.array(Image.open(path))
    made[:, 30:] = 128
    save(path, made)
    first, second = score_folder(world / "red", cases_of(world), Measures()).values()
    assert first["SSIM"] < 0.8 < second["SSIM"]


def test_a_result_of_another_size_is_judged_at_its_own(world):
    path = world / "red" / "Mug" / "fg1" / "0.png"
    Image.open(path).resize((96, 64), Image.Resampling.NEAREST).save(path)
    measures = Measures(encoders={"colour": MeanColour()})
    assert score_folder(world / "red", cases_of(world), measures)["Mug/fg1/0"]["colour"] > 0.99


def test_a_case_without_a_background_is_judged_as_a_whole(tmp_path):
    made = save(tmp_path / "a.png", np.broadcast_to((255, 0, 0), (8, 8, 3)))
    reference = save(tmp_path / "r.png", np.broadcast_to((250, 5, 5), (8, 8, 3)))
    measures = Measures(encoders={"colour": MeanColour()})
    scores = measures.of(Case("a", ((reference, None),), "mug"), made)
    assert scores == {"colour": pytest.approx(1, abs=0.01)}


def test_a_case_that_has_no_references_and_no_words_is_measured_by_what_is_left(tmp_path):
    made = save(tmp_path / "a.png", np.broadcast_to((255, 0, 0), (8, 8, 3)))
    room = save(tmp_path / "room.png", np.broadcast_to((255, 0, 0), (8, 8, 3)))
    measures = Measures(encoders={"colour": MeanColour()}, clip=MeanColour())  # pyright: ignore[reportArgumentType]
    assert measures.of(Case("a", (), ""), made) == {}
    case = Case("a", (), "", background=room, hole=Box(0, 0, 2, 2))
    assert list(measures.of(case, made)) == ["SSIM"]


def test_results_are_found_as_files_and_in_folders_of_one_picture(tmp_path):
    case = Case("a/b", (), "mug")
    assert find_result(tmp_path, case) is None
    inside = save(tmp_path / "a" / "b" / "with_inlay.png", np.zeros((4, 4)))
    assert find_result(tmp_path, case) == inside
    save(tmp_path / "a" / "b" / "plain.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"several pictures; choose with --picture: plain, with_inlay"):
        find_result(tmp_path, case)
    assert find_result(tmp_path, case, "with_inlay") == inside
    file = save(tmp_path / "a" / "b.jpg", np.zeros((4, 4)))
    assert find_result(tmp_path, case) == file


def test_the_frechet_distance_of_a_set_to_itself_is_none_and_grows_with_the_gap():
    class Corners(MeanColour):
        name, size = "corners", 4

        def __call__(self, images):
            return images[:, :, 0, 0]

    generator = torch.Generator().manual_seed(0)
    flat = [torch.rand(1, 3, 1, 1, generator=generator).expand(1, 3, 4, 4) / 2 for _ in range(40)]
    near, far = ([image + gap for image in flat] for gap in (0.1, 0.3))
    assert frechet_distance(flat, flat, Corners()) == pytest.approx(0, abs=1e-4)
    # equal covariances: the squared distance of the means
    assert frechet_distance(near, flat, Corners()) == pytest.approx(3 * 0.1**2, rel=0.02)
    assert frechet_distance(far, flat, Corners()) == pytest.approx(3 * 0.3**2, rel=0.02)


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="DreamSim"):
        load_dreamsim(tmp_path)
    with pytest.raises(ValueError, match=r"no file .*inception\.pth"):
        frechet_distance([], [], tmp_path / "inception.pth")


def test_the_command_line_prints_and_writes_a_table_with_a_row_per_folder(world, capsys):
    words = ["evaluate", str(world / "red"), str(world / "cyan"), "--benchmark", "murecom", "--data"]
    assert main([*words, str(world / "data"), "-o", str(world / "scores" / "table-0.7")]) == 0
    said = capsys.readouterr().out
    assert said == (world / "scores" / "table-0.7.md").read_text(encoding="utf-8") + "\n"
    assert "| red | 1.000 +- 0.000 | 2 |" in said
    written = json.loads((world / "scores" / "table-0.7.json").read_text(encoding="utf-8"))
    assert written["rows"]["cyan"]["SSIM"]["n"] == 2
    assert set(written["cases"]["red"]) == {"Mug/fg1/0", "Mug/fg1/1"}


def test_two_folders_of_one_name_keep_their_rows(world, tmp_path, capsys):
    again = tmp_path / "other" / "red"
    shutil.copytree(world / "red", again)
    words = ["evaluate", str(world / "red"), str(again), "--benchmark", "murecom", "--data"]
    assert main([*words, str(world / "data")]) == 0
    said = capsys.readouterr().out
    assert "| red |" in said
    assert f"| {again} |" in said


def test_the_command_line_measures_likeness_with_the_users_dino_and_names_it(world, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "dinov2-tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
             "patch_size": 8}  # fmt: skip
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    processor = {"image_processor_type": "BitImageProcessor", "do_resize": True, "do_normalize": True,
                 "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
                 "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    words = ["evaluate", str(world / "red"), str(world / "cyan"), "--benchmark", "murecom"]
    words += ["--data", str(world / "data"), "--dino", str(folder), "--fid", str(world / "red/Mug/fg1")]
    assert main([*words, "-o", str(world / "table")]) == 0
    rows = json.loads((world / "table.json").read_text(encoding="utf-8"))
    assert rows["rows"]["red"]["DINO"]["mean"] > rows["rows"]["cyan"]["DINO"]["mean"]
    name = "Frechet (dinov2 (dinov2-tiny))"
    assert rows["sets"]["red"][name] == pytest.approx(0, abs=1e-3)
    assert rows["sets"]["cyan"][name] > rows["sets"]["red"][name]
    assert "DINO: dinov2 (dinov2-tiny), the subject's own region." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["{data}", "--benchmark", "murecom", "--dino", "nowhere"], "holds no config.json"),
        (["{red}/Mug", "--benchmark", "murecom", "--data", "{data}"], "holds no result; the first would be"),
        (["{red}", "--benchmark", "murecom", "--data", "{data}", "--fid", "{red}"], "name the weights too"),
        (["{red}", "--benchmark", "murecom", "--data", "{data}", "-o", "{file}/x"], "{file}"),
    ],
)
def test_what_is_wrong_is_one_sentence(world, capsys, words, said):
    paths = {"data": world / "data", "red": world / "red", "file": world / "file"}
    paths["file"].touch()
    assert main(["evaluate", *(word.format(**paths) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said.format(**paths) in error
    assert "Traceback" not in error


def test_a_missing_library_is_named(world, capsys, monkeypatch):
    for name in ("torchmetrics", "torchmetrics.functional.image"):
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    words = ["evaluate", str(world / "red"), "--benchmark", "murecom", "--data", str(world / "data")]
    assert main(words) == 2
    assert "pip install torchmetrics" in capsys.readouterr().err


def test_several_composites_of_a_case_are_averaged(world):
    one = world / "red" / "Mug" / "fg1" / "0.png"
    folder = world / "red" / "Mug" / "fg1" / "0"
    folder.mkdir()
    one.rename(folder / "result_1.png")
    shutil.copy(world / "cyan" / "Mug" / "fg1" / "0.png", folder / "result_2.png")
    measures = Measures(encoders={"colour": MeanColour()})
    scores = score_folder(world / "red", cases_of(world), measures)
    assert scores["Mug/fg1/0"]["colour"] == pytest.approx(0, abs=0.01)  # 1 and -1
    assert len(find_results(world / "red", cases_of(world)[0])) == 2


def test_a_mask_beside_a_result_is_the_subject(world):
    """The hole holds more than the subject; its mask leaves the rest of the hole out."""
    result = world / "red" / "Mug" / "fg1" / "0.png"
    made = np.array(Image.open(result))
    x1, y1, x2, y2 = HOLE
    made[y1:y2, x1:x2] = (0, 255, 255)
    made[y1 : y1 + 4, x1 : x1 + 4] = (255, 0, 0)
    save(result, made)
    measures = Measures(encoders={"colour": MeanColour()})
    before = score_folder(world / "red", cases_of(world), measures)["Mug/fg1/0"]["colour"]
    mask = np.zeros(made.shape[:2])
    mask[y1 : y1 + 4, x1 : x1 + 4] = 255
    save(result.with_name("0_mask.png"), mask)
    after = score_folder(world / "red", cases_of(world), measures)["Mug/fg1/0"]["colour"]
    assert before < 0 < 0.99 < after
    save(result.with_name("0_mask.png"), 0 * mask)
    with pytest.raises(ValueError, match=r"mask: .*0_mask.png is empty"):
        score_folder(world / "red", cases_of(world), measures)
