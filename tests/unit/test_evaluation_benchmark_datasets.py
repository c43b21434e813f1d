"""Benchmarks as they are downloaded, in small: what is a case, what is left out, what is said of none."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from inlay.evaluation.benchmark_datasets import Case, dreambooth, read_cases
from inlay.evaluation.score import hole_of
from inlay.imaging.boxes import Box


def picture(path: Path, size=(20, 10), shade=100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 50, 50)).save(path)
    return path


def mask(path: Path, box: tuple, size=(20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    white = Image.new("L", size)
    white.paste(255, box)
    white.save(path)
    return path


@pytest.fixture
def subjects(tmp_path):
    """DreamBooth's dataset with a thing and a creature."""
    root = tmp_path / "dreambooth" / "dataset"
    for name in ("teapot", "dog2"):
        for number in range(2):
            picture(root / name / f"{number:02}.jpg")
    prompts = [
        f"'a {{0}} {{1}} {place}'.format(unique_token, class_token)," for place in ("on top", "in the snow")
    ]
    hats = ["'a {0} {1} wearing a hat'.format(unique_token, class_token)"]
    text = ["Classes", "", "subject_name,class", "teapot,teapot", "dog2,dog", "", "Object Prompts", *prompts,
            "Live Subject Prompts", *hats]  # fmt: skip
    (root / "prompts_and_classes.txt").write_text("\n".join(text), encoding="utf-8")
    return tmp_path / "dreambooth"


def test_murecom_reads_boxes_and_both_kinds_of_holes(tmp_path):
    category = tmp_path / "Fire_hydrant"
    for number in range(3):
        picture(category / "bg" / f"{number}.jpg")
    (category / "bg" / "bbox.txt").write_text("Fire_hydrant 0.jpg 2 1 12 6\n", encoding="utf-8")
    hole = mask(category / "bg" / "1_bbox.png", (0, 0, 4, 4))
    for number in range(2):
        picture(category / "fg1" / f"{number}.jpg")
        mask(category / "fg1" / f"{number}.png", (1, 1, 5, 5))
    picture(category / "fg" / "0.jpg")
    cases = read_cases("murecom", tmp_path)
    assert [(case.name, case.hole) for case in cases] == [
        ("Fire_hydrant/fg1/0", Box(1, 2, 6, 12)),
        ("Fire_hydrant/fg1/1", hole),
    ]
    assert cases[0].caption == "a photo of fire hydrant"
    assert [(photo.name, shape and shape.name) for photo, shape in cases[0].references] == [
        ("0.jpg", "0.png"),
        ("1.jpg", "1.png"),
    ]


def test_dreambooth_gives_things_and_creatures_their_own_prompts(subjects):
    cases = list(dreambooth(subjects))
    assert [(case.name, case.caption) for case in cases] == [
        ("dog2/00", "a dog wearing a hat"),
        ("teapot/00", "a teapot on top"),
        ("teapot/01", "a teapot in the snow"),
    ]
    assert cases[0].background is None
    assert len(cases[0].references) == 2


def test_dreameditbench_takes_its_subjects_from_dreambooth(tmp_path, subjects):
    root = tmp_path / "bench" / "data"
    background = picture(root / "replacement_source" / "dog2" / "4.jpg")
    hole = mask(root / "replacement_source" / "dog2" / "4_mask.png", (0, 0, 5, 5))
    picture(root / "addition_source" / "teapot" / "1.png")
    cases = read_cases("dreameditbench", tmp_path / "bench", subjects)
    assert [(c.name, c.class_name, c.hole) for c in cases] == [
        ("addition/teapot/1", "teapot", None),
        ("replacement/dog2/4", "dog", hole),
    ]
    assert cases[1].background == background
    with pytest.raises(ValueError, match="no pictures of teapot; give --subjects"):
        read_cases("dreameditbench", tmp_path / "bench")


def test_dreameditbench_with_boxes_in_json(tmp_path):
    picture(tmp_path / "teapot" / "bg" / "0.jpg")
    picture(tmp_path / "teapot" / "fg" / "03.jpg")
    mask(tmp_path / "teapot" / "fg" / "03.png", (0, 0, 5, 5))
    content = [{"image": "0.jpg", "bbox": [3, 1, 9, 8], "source_prompt": "a table"}]
    (tmp_path / "teapot" / "bg" / "content.json").write_text(json.dumps(content), encoding="utf-8")
    (case,) = read_cases("dreameditbench", tmp_path)
    assert (case.name, case.hole, len(case.references)) == ("teapot/0", Box(1, 3, 8, 9), 1)


def test_coco_takes_each_large_pictures_largest_object_and_the_subjects_in_turn(tmp_path, subjects):
    boxes = [[0, 0, 10, 10], [5, 6, 200, 100], [10, 10, 300, 300], [1, 1, 90, 90]]
    owners = [1, 1, 2, 3]
    document = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
            {"id": 2, "file_name": "small.jpg", "width": 320, "height": 320},
            {"id": 3, "file_name": "b.jpg", "width": 480, "height": 640},
            {"id": 4, "file_name": "bare.jpg", "width": 480, "height": 640},
        ],
        "annotations": [
            {"image_id": owner, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for owner, box in zip(owners, boxes, strict=True)
        ],
    }
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(document), encoding="utf-8")
    cases = read_cases("coco", tmp_path / "coco", subjects)
    assert [(case.name, case.class_name, case.hole) for case in cases] == [
        ("a", "dog", Box(6, 5, 106, 205)),
        ("b", "teapot", Box(1, 1, 91, 91)),
    ]
    assert cases[0].background == tmp_path / "coco" / "val2017" / "a.jpg"
    with pytest.raises(ValueError, match="where the subjects are"):
        read_cases("coco", tmp_path / "coco")


def test_a_folder_of_pictures_with_masks_is_coco_too(tmp_path, subjects):
    picture(tmp_path / "rooms" / "hall.jpg")
    hole = mask(tmp_path / "rooms" / "hall_mask.png", (0, 0, 5, 5))
    picture(tmp_path / "rooms" / "bare.jpg")
    (case,) = read_cases("coco", tmp_path / "rooms", subjects)
    assert (case.name, case.hole) == ("hall", hole)


def test_cocoee_pairs_the_three_folders(tmp_path):
    key = "000000000139"
    picture(tmp_path / "GT_3500" / f"{key}_GT.png")
    picture(tmp_path / "GT_3500" / "000000000140_GT.png")
    mask(tmp_path / "Mask_bbox_3500" / f"{key}_mask.png", (0, 0, 5, 5))
    picture(tmp_path / "Ref_3500" / f"{key}_ref.png")
    (case,) = read_cases("cocoee", tmp_path)
    assert (case.name, case.hole) == (key, tmp_path / "Mask_bbox_3500" / f"{key}_mask.png")


def test_a_batch_says_itself_what_its_pictures_were_made_from(tmp_path):
    room = picture(tmp_path / "rooms" / "hall.png")
    for number in range(2):
        picture(tmp_path / "cat" / f"{number}.png")
    graph = {
        "0": {"class_type": "ImageCrop", "inputs": {"x": 0, "y": 0, "width": 99, "height": 99}},
        "1": {"class_type": "InlayBoxMask", "inputs": {"x": 2, "y": 3, "width": 5, "height": 6}},
        "2": {"class_type": "SubjectFinetune", "inputs": {"class_name": "cat", "token": "sks"}},
        "3": {"class_type": "InlaySubjectPrompt", "inputs": {"prompt": "a {red|blue} sks cat in a hall"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
        "5": {"class_type": "Any", "inputs": {"class_name": ["2", 0], "token": ["2", 1], "text": ["2", 2]}},
    }
    facts = {"graph": graph, "settings": [f"A.folder={tmp_path / 'cat'}", f"B.image={room}", "C.steps=3"]}
    (tmp_path / "out" / "cat" / "hall").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "hall" / "result.json").write_text(json.dumps(facts), encoding="utf-8")
    (case,) = read_cases("batch", tmp_path / "out")
    assert (case.name, case.caption, case.hole) == ("cat/hall", "a {red|blue} cat in a hall", Box(3, 2, 9, 7))
    assert (case.background, len(case.references)) == (room, 2)
    graph["1"]["inputs"]["x"] = ["7", 0]  # by wire: nobody knows
    (tmp_path / "out" / "cat" / "hall" / "result.json").write_text(json.dumps(facts), encoding="utf-8")
    (case,) = read_cases("batch", tmp_path / "out")
    assert case.hole is None


@pytest.mark.parametrize("benchmark", ["batch", "murecom", "cocoee"])
def test_a_folder_without_a_case_says_how_it_should_look(tmp_path, benchmark):
    with pytest.raises(ValueError, match=f"holds no case of {benchmark}, whose layout is: "):
        read_cases(benchmark, tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        read_cases(benchmark, tmp_path / "nowhere")


def test_a_hole_follows_the_results_size(tmp_path):
    background = picture(tmp_path / "b.png", (20, 10))
    case = Case("x", (), "cat", background=background, hole=Box(2, 4, 6, 14))
    hole = hole_of(case, (20, 40))
    assert hole is not None
    expected = torch.zeros(20, 40)
    expected[4:12, 8:28] = 1
    assert torch.equal(hole[0], expected)
    file = mask(tmp_path / "m.png", (4, 2, 14, 6))
    same = hole_of(Case("x", (), "cat", background=background, hole=file), (20, 40))
    assert same is not None
    assert torch.equal(same, hole)
