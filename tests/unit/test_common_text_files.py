"""Text files in the encodings that editors write, and JSON that is none."""

import json

import pytest

from inlay.common.files import read_json, read_text
from inlay.training.finetune.attribute_dictionary import parse_attributes
from inlay.training.finetune.subject import Subject, is_subject
from inlay.training.finetune.toml_config import read_toml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_write_is_read(tmp_path, encoding):
    file = tmp_path / "facts.json"
    file.write_text('{"class": "caf\u00e9"}', encoding=encoding)
    assert read_json(file) == {"class": "caf\u00e9"}


def test_another_encoding_names_the_file(tmp_path):
    file = tmp_path / "facts.json"
    file.write_bytes('"caf\u00e9"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"--data: facts.json is not written in UTF-8"):
        read_text(file, "--data")
    toml = tmp_path / "finetune.toml"
    toml.write_bytes('class_name = "caf\u00e9"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"finetune.toml is not written in UTF-8"):
        read_toml(toml)


def test_a_toml_with_a_byte_order_mark_is_read(tmp_path):
    toml = tmp_path / "finetune.toml"
    text = 'checkpoint = "a.safetensors"\nreferences = "photos"\nclass_name = "cup"'
    toml.write_text(text, encoding="utf-8-sig")
    assert read_toml(toml).class_name == "cup"


@pytest.mark.parametrize("text", ["{", '{"a": ' * 50000, "[1,"])
def test_what_is_no_json_is_named(tmp_path, text):
    file = tmp_path / "facts.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"facts.json is (no JSON: line 1|nested too deeply)"):
        read_json(file)


def test_deep_attributes_are_refused():
    with pytest.raises(ValueError, match="attributes: this is"):
        parse_attributes('{"a": ' * 50000)


def test_a_subject_has_fields_of_its_types():
    own = Subject("sks", "cup", "a sks cup", "inlay/a.safetensors", "DreamCom", "sd15", 1, 1, 4)
    assert Subject.from_json("\ufeff" + own.to_json()) == own
    for field, wrong in (("token", "5"), ("steps", '"many"'), ("losses", '"no"'), ("attributes", '{"a": 5}')):
        text = json.dumps(json.loads(own.to_json()) | {field: json.loads(wrong)})
        with pytest.raises(ValueError, match=f"its {field} is"):
            Subject.from_json(text)


def test_notes_of_other_programs_are_no_subject():
    assert not is_subject('{"class_name": "cup", "trigger": "sks"}')
    assert not is_subject('{"a": ' * 50000)
