"""What the subject looks like travels with it, and is no reason to train again."""

import pytest

ATTRIBUTES = "colour: brown; material: clay"


def test_attributes_go_into_the_subject_and_nothing_is_trained_for_them(
    run, pictures, store_folder, monkeypatch
):
    from inlay.training.finetune import finetune_subject
    from inlay.training.finetune.subject import Subject

    before = run(*pictures, attributes=ATTRIBUTES)
    assert before[3].attributes == {"colour": ["brown"], "material": ["clay"]}
    monkeypatch.setattr(finetune_subject, "train_lora", lambda *_, **__: pytest.fail("trained again"))
    after = run(*pictures, attributes='{"material": ["glass"]}')
    assert after[3].attributes == {"material": ["glass"]}
    (stored,) = store_folder.glob("*.json")
    assert Subject.from_json(stored.read_text(encoding="utf-8")) == after[3]
    assert run(*pictures)[3] == after[3]


def test_attributes_that_cannot_be_read_are_refused_before_any_work(run, pictures, monkeypatch):
    from inlay.training.finetune import pipeline

    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match="attributes: 'brown' has no kind"):
        run(*pictures, attributes="brown")
