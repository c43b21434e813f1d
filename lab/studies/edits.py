"""Can words still change a finetuned subject? Edits on a tiny model (DreamMix, sections 3.3 and 3.4).

    python dev.py lab edits [--work DIR] [--models FOLDER] [--kind fill] [--only words data] [--pilot]

A striped red mug is trained as "sks mug"; then "a blue dotted sks mug" is painted: six edits of each subject,
each in a held-out scene of its own, always another colour and another pattern. An edit is followed when the
classifier finds the asked colour in the box. At the model's usual guidance the asked colour wins nearly
always; so the guidance --cfg is a low one, at which the subject's own look resists and about four of ten
edits are followed (the pilot prints the share).

words: the plain prompt, the prompt without the subject's own colour and pattern (attribute substitution,
       jointly and one after another), and, as a control, without another colour and pattern. "not trained" is
       the edit without the token.
data:  DreamMix's regular data: the subject alone; beside pictures of its class; beside pictures by prompts
       of its attributes, with the token and without. Every step sees as many examples of the subject, for
       regular data comes in addition. Edits followed, and whether the subject is still itself: its likeness
       as it is, and, in the edits, its trim, which no caption names.

A unit of a table is a subject (25 without --subjects); one JSON file for each, so an interrupted run goes
on. --pilot takes 4. Writes edits_words_KIND.md, edits_data_KIND.md, .json and .jpg.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...conditioning.substitution import JOINT, SEQUENTIAL
from ...evaluation.tables import Table
from .. import scenes
from ..models.classifier import SceneClassifier, trained_classifier
from .quality import HELD_OUT, Inpainter, Task, stacked, task_of
from .study import change, rows_of, study_folders, subject_cells, training_parser, write_table
from .subjects import (
    PHOTOS,
    SHOWN,
    SIMILARITY,
    TOKEN,
    comparison_sheet,
    features,
    finetuned,
    numbers_of,
    reference_photos,
    study_recipe,
)

EDITS, PILOT = 6, 4
PROMPT = "a photo of a {token} {class_name}"  # as the captions that the model knows
REGULAR_PROMPTS, REGULAR_EACH = 8, 3  # where fewer prompts differ, more pictures of each
FOLLOWED, PATTERN, CLASS, IDENTITY = "edit followed", "pattern followed", "class", "subject as it is"
TRIM = "trim kept"
FREE, PLAIN = "not trained", "plain prompt"
OWN, IN_TURN, OTHERS = "own words removed", "own words removed in turn", "other words removed"
WORDS = (FREE, PLAIN, OWN, IN_TURN, OTHERS)
BASE, CLASS_DATA, ADM, ADM_FREE = (
    "the subject alone",
    "+ pictures of the class",
    "+ attributes",
    "+ attributes, no token",
)
DATA = (FREE, BASE, CLASS_DATA, ADM, ADM_FREE)
FOLLOWED_CHECK = (0.25, 0.55)  # of the edits by the plain prompt: else nothing resists, or nothing can help
MARGIN = 0.04  # likeness that the regular data may cost
ONE_SIDED = 1.645  # standard errors from a mean to its one-sided bound at a confidence of .95
VERSIONS = {"words": 1, "data": 2}  # raised where the same choices give other numbers


@dataclass(frozen=True)
class EditChoices:
    """Everything that decides a subject's numbers; kept with them."""

    study: str
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    edits: int
    sampling_steps: int
    cfg: float
    model: str
    version: int = 1


@dataclass(frozen=True)
class EditedSubject:
    """A thing with photos (R, H, W, 3) and masks (R, H, W), its edits, and scenes of both.

    `edits` are the tasks of the edited things, `others` a colour and a pattern for each that are neither its
    own nor the edit's, and `as_is` tasks of the thing itself.
    """

    thing: scenes.Thing
    references: Tensor
    reference_masks: Tensor
    edits: list[Task]
    others: list[str]
    as_is: list[Task]


def edited_subject(index: int, count: int, photos: int = PHOTOS) -> EditedSubject:
    """Subject number `index` with `count` edits: classes take turns, all else is drawn."""
    rng = np.random.default_rng([HELD_OUT, 13, index])
    patterns = [pattern for pattern in scenes.PATTERNS if pattern != "plain"]
    thing = scenes.sample_thing(
        rng, kind=scenes.CLASSES[index % len(scenes.CLASSES)], pattern=str(rng.choice(patterns)),
        accessory="none", emblems=(),
    )  # fmt: skip
    references, masks = reference_photos(rng, thing, photos)
    free = [name for name in scenes.COLOURS if name != thing.colour]
    edits, others = [], []
    for _ in range(count):
        colour, other = (str(name) for name in rng.choice(free, 2, replace=False))
        pattern, spare = (str(p) for p in rng.permutation([p for p in patterns if p != thing.pattern]))
        edited = replace(thing, colour=colour, pattern=pattern)
        edits.append(task_of(scenes.sample_scene(rng, edited), rng))
        others.append(f"{other} {spare}")
    as_is = [task_of(scenes.sample_scene(rng, thing), rng) for _ in range(count)]
    return EditedSubject(thing, references, masks, edits, others, as_is)


def edit_prompt(task: Task, token: str = TOKEN) -> str:
    """'a photo of a blue dotted sks mug'."""
    return scenes.phrase([*scenes.looks_of(task.thing), *([token] if token else [])], task.thing.kind)


def encoded(painter: Inpainter, prompts: Sequence[str], removed: Sequence[str], projection: str) -> Tensor:
    """Rows (B, L, 768) of the prompts without the words to remove, by the node itself."""
    from ...nodes import AttributeSubstitutionEncode

    rows = []
    with torch.inference_mode():
        for prompt, words in zip(prompts, removed, strict=True):
            output: Any = AttributeSubstitutionEncode.execute(
                painter.clip, prompt, words, projection=projection
            )
            rows.append(output.result[0][0][0])
    return torch.cat(rows)


def edit_numbers(classifier: SceneClassifier, images: Tensor, tasks: list[Task]) -> dict[str, float]:
    """How far edits (n, H, W, 3) are followed, and how like the edited truth they are."""
    holes = stacked(tasks, "hole")
    verdicts = classifier.describe(images.movedim(-1, 1), holes)
    shares = {
        name: float(
            np.mean(
                [getattr(v, word) == getattr(t.thing, word) for v, t in zip(verdicts, tasks, strict=True)]
            )
        )
        for name, word in {FOLLOWED: "colour", PATTERN: "pattern", CLASS: "kind"}.items()
    }
    likeness = features(classifier, images, holes) * features(classifier, stacked(tasks, "truth"), holes)
    return {**shares, SIMILARITY: float(likeness.sum(1).mean())}


def paint(
    painter: Inpainter, tasks: list[Task], prompts: Sequence[str] | Tensor, seed: int, model,
    steps: int, cfg: float = 0.0,
):  # fmt: skip
    """Pictures (n, H, W, 3) of the prompts, or of their rows, in the tasks' boxes; cfg 0 is the usual one."""
    images, holes = stacked(tasks, "background"), stacked(tasks, "hole")
    return painter.paint(images, holes, prompts, None, seed, model, steps, cfg=cfg).cpu()


def regular_data(painter: Inpainter, prompts: Sequence[str], index: int, steps: int) -> list[Any]:
    """Pictures that the model paints by the prompts in empty rooms, by prompt (DreamMix, section 3.3)."""
    from ...training.finetune.data import Reference
    from ...training.finetune.regular_data import changed_mask, group_by_prompt

    rng = np.random.default_rng([HELD_OUT, 14, index])
    alone = [scenes.sample_scene(rng, others=0, scale=(0.5, 0.72)) for _ in prompts]
    tasks = [task_of(scene, rng) for scene in alone]
    images = paint(painter, tasks, prompts, index, None, steps)
    outlines = [changed_mask(image, t.background, t.hole) for image, t in zip(images, tasks, strict=True)]
    return group_by_prompt([Reference(*pair) for pair in zip(images, outlines, strict=True)], list(prompts))


def measure_words(painter: Inpainter, classifier: SceneClassifier, index: int, choices: EditChoices):
    """Pictures and numbers of one subject's edits, by what was removed from the prompt."""
    subject = edited_subject(index, choices.edits)
    recipe = study_recipe(painter.model, choices, prompt=PROMPT)
    tuned = finetuned(painter, subject, recipe, index, scenes.SIZE)
    prompts, sampling = [edit_prompt(task) for task in subject.edits], (choices.sampling_steps, choices.cfg)
    own = [" ".join(scenes.looks_of(subject.thing))] * len(prompts)
    prompts_of: dict[str, Any] = {
        FREE: [edit_prompt(task, "") for task in subject.edits],
        PLAIN: prompts,
        OWN: encoded(painter, prompts, own, JOINT),
        IN_TURN: encoded(painter, prompts, own, SEQUENTIAL),
        OTHERS: encoded(painter, prompts, subject.others, JOINT),
    }
    pictures = {"truth": stacked(subject.edits, "truth")}
    for way, words in prompts_of.items():
        model = None if way == FREE else tuned
        pictures[way] = paint(painter, subject.edits, words, index, model, *sampling)
    return pictures, {way: edit_numbers(classifier, x, subject.edits) for way, x in pictures.items()}


def measure_data(painter: Inpainter, classifier: SceneClassifier, index: int, choices: EditChoices):
    """Pictures and numbers of one subject's edits, by what it was trained beside."""
    from ...training.finetune.attribute_dictionary import SUBJECT, compose_prompts

    subject = edited_subject(index, choices.edits)
    thing = subject.thing
    # the batch does what accumulation does where memory is short
    recipe = study_recipe(painter.model, choices, "DreamMix", prompt=PROMPT, accumulation=1)
    attributes = {"colour": [thing.colour], "pattern": [thing.pattern]}
    template = f"a photo of a {SUBJECT}"

    def data(prompts: Sequence[str]):
        each = REGULAR_PROMPTS * REGULAR_EACH // len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(each)]
        return regular_data(painter, repeated, index, choices.sampling_steps)

    def composed(token: str) -> list[str]:
        return compose_prompts(attributes, thing.kind, token, REGULAR_PROMPTS, index, template)

    regular: dict[str, list[Any]] = {
        BASE: [],
        CLASS_DATA: data([scenes.phrase([], thing.kind)]),
        ADM: data(composed(TOKEN)),
        ADM_FREE: data(composed("")),
    }
    truth = stacked(subject.edits, "truth")
    pictures, numbers = {"truth": truth}, {"truth": data_numbers(classifier, truth, subject)}
    for way in DATA:
        token, model = "", None
        if way != FREE:
            token, model = TOKEN, finetuned(painter, subject, recipe, index, scenes.SIZE, regular[way])
        pictures[way], same = paint_data(painter, subject, index, choices, token, model)
        numbers[way] = data_numbers(classifier, pictures[way], subject, same)
    return pictures, numbers


def paint_data(
    painter: Inpainter, subject: EditedSubject, index: int, choices: EditChoices, token: str, model: Any
) -> tuple[Tensor, Tensor]:
    """The subject's edits and the subject as it is, painted by a patched model or by the painter's own."""
    edits = [edit_prompt(task, token) for task in subject.edits]
    as_is = [scenes.caption(subject.thing, token) if token else scenes.phrase([], subject.thing.kind)]
    as_is *= len(subject.as_is)
    sampling = choices.sampling_steps, choices.cfg
    edited = paint(painter, subject.edits, edits, index, model, *sampling)
    return edited, paint(painter, subject.as_is, as_is, index, model, *sampling)


def data_numbers(
    classifier: SceneClassifier, edited: Tensor, subject: EditedSubject, same: Tensor | None = None
) -> dict[str, float]:
    """What `edit_numbers` gives of the edits, the share with its own trim, and the likeness as it is."""
    numbers = edit_numbers(classifier, edited, subject.edits)
    numbers[TRIM] = numbers_of(classifier, edited, subject.edits)["trim"]
    if same is not None:
        numbers[IDENTITY] = numbers_of(classifier, same, subject.as_is)[SIMILARITY]
    return numbers


def notes_of(results: list, choices: EditChoices, name: str) -> list[str]:
    return [
        f"{len(results)} subjects x {choices.edits} edits, seed {HELD_OUT}; errors over subjects; similarity"
        f" to the edited truth by {name}. {choices.steps} training steps of {choices.batch_size}, rank"
        f" {choices.rank}, rate {choices.learning_rate:g}, {PHOTOS} photos. {choices.sampling_steps} sampling"
        f" steps, guidance {choices.cfg:g}.",
    ]


def words_table(results: list, choices: EditChoices, name: str) -> Table:
    """Means over subjects, and what the removal changes."""
    rows = rows_of(results)
    table = Table("Edits of a finetuned subject, by what was removed from the prompt", rows)
    followed, (low, high) = float(np.mean(rows[PLAIN][FOLLOWED])), FOLLOWED_CHECK
    notes = notes_of(results, choices, name)
    notes.append(
        f"Manipulation check: the plain prompt is followed in {followed:.3f}, wanted {low} to {high}."
    )
    pairs = ((OWN, PLAIN), (IN_TURN, PLAIN), (OTHERS, PLAIN), (OWN, OTHERS))
    notes += [change(table, *pair, m) for pair in pairs for m in (FOLLOWED, SIMILARITY)]
    return replace(table, notes=notes)


def data_table(results: list, choices: EditChoices, name: str) -> Table:
    """Means over subjects, and what the regular data changes."""
    rows = rows_of(results)
    table = Table("Edits of a finetuned subject, by what it was trained beside", rows)
    pairs = ((CLASS_DATA, BASE), (ADM, BASE), (ADM_FREE, BASE), (ADM, CLASS_DATA), (ADM_FREE, ADM))
    notes = notes_of(results, choices, name)
    notes.append(
        f"Recipe DreamMix. {REGULAR_PROMPTS * REGULAR_EACH} regular pictures, painted with the usual"
        " guidance; a step sees as many of them as of the subject, beside these."
    )
    followed, (low, high) = float(np.mean(rows[BASE][FOLLOWED])), FOLLOWED_CHECK
    notes.append(f"Manipulation check: {BASE} is followed in {followed:.3f}, wanted {low} to {high}.")
    measures = (FOLLOWED, SIMILARITY, TRIM, IDENTITY)
    notes += [change(table, *pair, measure) for pair in pairs for measure in measures]
    for way in (CLASS_DATA, ADM, ADM_FREE):
        cost = table.difference(way, BASE, IDENTITY)
        bound = cost.mean - ONE_SIDED * cost.error
        notes.append(
            f"{IDENTITY}: {way} against {BASE} is above {bound:.3f}, confidence .95; the margin is {-MARGIN}."
        )
    return replace(table, notes=notes)


STUDIES: dict[str, Any] = {
    "words": (measure_words, words_table, WORDS),
    "data": (measure_data, data_table, DATA),
}


def main():
    parser = training_parser(__doc__, "edits", EDITS, PILOT)
    parser.set_defaults(subjects=25)
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--kind", default="fill", choices=["unet", "fill"])
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance of the edits")
    a = parser.parse_args()
    out, models = study_folders(a)
    classifier, count = trained_classifier(a.work), PILOT if a.pilot else a.subjects
    painter = Inpainter(a.kind, models)
    file = painter.fingerprint(classifier)
    for study in a.only:
        measure, tabulated, ways = STUDIES[study]
        choices = EditChoices(
            study, a.steps, 16, a.rate, 4, a.scenes, a.sampling_steps, a.cfg, file, VERSIONS[study]
        )
        folder, name = out / f"{study}_{a.kind}", f"edits_{study}_{a.kind}"
        results = subject_cells(
            folder, count, choices, partial(measure, painter, classifier, choices=choices)
        )
        write_table(tabulated(results, choices, classifier.name), out, name)
        drawn = [edited_subject(index, a.scenes) for index in range(min(SHOWN, count))]
        shown = [(s.references[0], s.edits[0], edit_prompt(s.edits[0])) for s in drawn]
        sheet = comparison_sheet(folder, shown, ways)
        sheet.save(out / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
