"""`crossdet-research split`: who gets which image, what is labelled and painted over."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_pictures import CLASSES, PARTS, SIZE, index_of
from PIL import Image

from crossdet.data.groups import Groups
from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.types import Flag
from crossdet_research.split import assignment
from crossdet_research.split.looks import LOOKS, can_be_erased, erase, mask_of, read_picture, with_look
from crossdet_research.split.plan import METHODS, SplitPlan, split_dataset, summary


def mixed(count: int, seed: int = 0) -> list[set[str]]:
    rng = np.random.default_rng(seed)
    return [{name for name in CLASSES if rng.random() < 0.5} for _ in range(count)]


def plan_of(shown: list[set[str]], parts: dict[str, list[str]] = PARTS, **options: Any) -> SplitPlan:
    return split_dataset(index_of(shown), index_of(mixed(4, 9)), parts, **options)


def conflicts_by_hand(plan: SplitPlan, shown: list[set[str]]) -> dict[str, int]:
    """Images of every part that show an object which is neither labelled nor marked nor painted over."""
    counts = {}
    for part in plan.parts:
        cleared = {*part.erased_images.tolist(), *part.marked_images.tolist()}
        counts[part.name] = sum(
            1 for row in part.images.tolist() if row not in cleared and shown[row] - set(part.classes)
        )
    return counts


# ------------------------------------------------------------------------------------------- who gets what


@given(
    count=st.integers(6, 40),
    parts=st.integers(2, 4),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_image_is_in_one_part_or_in_all(count: int, parts: int, share: float, seed: int) -> None:
    given_parts = {f"p{i}": [CLASSES[i % 3]] for i in range(parts)} | {"rest": ["b", "c"]}
    plan = plan_of(mixed(count, seed), given_parts, share=share, seed=seed)
    seen = np.bincount(np.concatenate([part.images for part in plan.parts]), minlength=count)
    shared = int((seen == len(given_parts)).sum())
    assert set(seen.tolist()) <= {1, len(given_parts)}
    assert shared == int(np.floor(share * count + 0.5))
    sizes = [len(part.images) for part in plan.parts]
    assert max(sizes) - min(sizes) <= 1
    for part in plan.parts:
        assert part.images.tolist() == sorted(set(part.images.tolist()))


@given(count=st.integers(4, 30), seed=st.integers(0, 99), size=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_given_size_is_met_by_all_parts(count: int, seed: int, size: int) -> None:
    if 2 * size > count:
        with pytest.raises(UserError, match=f"--images {size}: expected 1 to {count // 2}"):
            plan_of(mixed(count, seed), images=size)
        return
    plan = plan_of(mixed(count, seed), images=size, seed=seed)
    assert [len(part.images) for part in plan.parts] == [size, size]
    assert not set(plan.parts[0].images.tolist()) & set(plan.parts[1].images.tolist())


def test_a_part_labels_its_own_classes_and_nothing_else() -> None:
    shown = mixed(30, 1)
    plan = plan_of(shown, {"left": ["a", "b"], "right": ["b", "c"]}, share=0.2)
    index, image = plan.train, plan.train.image_of_box()
    for part in plan.parts:
        for box in range(len(index.boxes)):
            own = index.classes[index.labels[box]] in part.classes
            inside = int(image[box]) in part.images.tolist()
            assert bool(part.labelled[box]) == (own and inside)


def test_regions_of_no_class_stay_in_every_part() -> None:
    builder = IndexBuilder("")
    for number in range(4):
        builder.image(f"{number}.png", SIZE, SIZE)
        builder.box((0, 0, 9, 9), -1, int(Flag.IGNORE_REGION))
        builder.box((20, 20, 30, 30), number % 3)
    index = builder.build(CLASSES)
    for part in split_dataset(index, index, PARTS).parts:
        kept = index.labels[part.labelled]
        assert int((kept < 0).sum()) == len(part.images)
        assert set(kept.tolist()) <= {-1, *(CLASSES.index(name) for name in part.classes)}


def test_the_same_seed_gives_the_same_plan_and_another_one_does_not() -> None:
    one, same, other = (plan_of(mixed(30), seed=seed) for seed in (3, 3, 4))
    assert [p.images.tolist() for p in one.parts] == [p.images.tolist() for p in same.parts]
    assert [p.images.tolist() for p in one.parts] != [p.images.tolist() for p in other.parts]


# ------------------------------------------------------------------------------------------- conflict


@given(count=st.integers(4, 40), seed=st.integers(0, 99), method=st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_conflict_as_the_data_come_is_counted_right(count: int, seed: int, method: Any) -> None:
    shown = mixed(count, seed)
    plan = plan_of(shown, seed=seed, method=method)
    by_hand = conflicts_by_hand(plan, shown)
    assert {part.name: len(part.conflict_images) for part in plan.parts} == by_hand
    record = summary(plan)
    assert record["conflict"] == sum(by_hand.values()) / count
    for part in plan.parts:
        assert record["parts"][part.name]["conflict"] == by_hand[part.name] / len(part.images)
        assert not len(part.erased_images)
        assert not len(part.marked_images)


@given(seed=st.integers(0, 300), wanted=st.integers(0, 12), method=st.sampled_from(METHODS))
@settings(max_examples=80, deadline=None)
def test_the_wanted_conflict_is_met_exactly_or_refused(seed: int, wanted: int, method: Any) -> None:
    shown = mixed(24, seed)
    if wanted == 12:
        return  # 1 means: as the data come
    refused = ""
    try:
        plan = plan_of(shown, conflict=wanted / 12, method=method, seed=seed)
    except UserError as error:
        refused = str(error)
    if refused:
        assert "cannot be reached" in refused
        return
    assert conflicts_by_hand(plan, shown) == {"left": wanted, "right": wanted}
    assert [len(part.conflict_images) for part in plan.parts] == [wanted, wanted]
    assert [len(part.images) for part in plan.parts] == [12, 12]
    everywhere = np.concatenate([part.images for part in plan.parts])
    assert sorted(everywhere.tolist()) == list(range(24))


def shares_by_trying(conflict: np.ndarray, size: int) -> set[int]:
    """Numbers of images in conflict that both of two parts of `size` images can have at once."""
    images = set(range(conflict.shape[1]))
    found = set()
    for left in itertools.combinations(sorted(images), size):
        for right in itertools.combinations(sorted(images - set(left)), size):
            one, two = int(conflict[0, list(left)].sum()), int(conflict[1, list(right)].sum())
            found |= {one} if one == two else set()
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_choosing_reaches_what_trying_every_assignment_reaches(size: int) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        conflict = rng.random((2, 7)) < rng.choice([0.3, 0.5, 0.8])
        home = assignment.deal(7, 2, 0.0, size, rng)
        possible = shares_by_trying(conflict, size)
        for wanted in range(size + 1):
            chosen = assignment.choose(home, conflict, wanted / size, rng)
            assert (chosen is not None) == (wanted in possible)
            if chosen is not None:
                rows = [assignment.members(chosen, p) for p in (0, 1)]
                assert [int(conflict[p, rows[p]].sum()) for p in (0, 1)] == [wanted, wanted]
                assert [len(one) for one in rows] == [size, size]
        ends = assignment.equal_range(home, conflict)
        wanted_ends = (min(possible) / size, max(possible) / size) if possible else None
        assert ends == wanted_ends


def test_avoid_leaves_the_fewest_bad_images_in_the_worst_part() -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        bad = rng.random((2, 7)) < 0.6
        home = assignment.avoid(assignment.deal(7, 2, 0.0, 3, rng), bad, rng)
        rows = [assignment.members(home, p) for p in (0, 1)]
        worst = max(int(bad[p, rows[p]].sum()) for p in (0, 1))
        best = min(
            max(int(bad[0, list(left)].sum()), int(bad[1, list(right)].sum()))
            for left in itertools.combinations(range(7), 3)
            for right in itertools.combinations(sorted(set(range(7)) - set(left)), 3)
        )
        assert worst == best
        assert [len(one) for one in rows] == [3, 3]


def test_choosing_moves_nothing_where_the_data_come_as_wanted() -> None:
    rng = np.random.default_rng(0)
    conflict = rng.random((2, 24)) < 0.5
    home = next(
        home
        for home in (assignment.deal(24, 2, 0.0, None, np.random.default_rng(s)) for s in range(200))
        if conflict[0, home == 0].sum() == conflict[1, home == 1].sum()
    )
    wanted = conflict[0, home == 0].sum() / 12
    assert assignment.choose(home, conflict, wanted, rng).tolist() == home.tolist()  # type: ignore[union-attr]


def test_levels_of_choosing_have_the_same_labels() -> None:
    """With images to spare every level can have the labels of the first one, and gets them."""
    shown = [{"a", "b"}] * 60 + [{"a"}] * 30 + [{"b"}] * 30
    plans = [plan_of(shown, conflict=level, images=30) for level in (1.0, 0.8, 0.7, 0.6, 0.5)]
    for plan in plans:
        assert (plan.labels_as_they_come == plans[0].labels_as_they_come).all()
        for p, part in enumerate(plan.parts):
            have = summary(plan)["parts"][part.name]["boxes_labelled"]
            for name in part.classes:
                assert abs(have[name] - plan.labels_as_they_come[p, CLASSES.index(name)]) <= 1


@given(seed=st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_balancing_keeps_sizes_and_conflict_and_comes_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 6, (30, 3))
    labelled = np.array([[True, False, True], [False, True, True]])
    conflict = rng.random((2, 30)) < 0.5
    home = assignment.deal(30, 2, 0.1, 10, rng)
    wanted = rng.integers(10, 40, (2, 3)) * labelled

    def distance(home: np.ndarray) -> float:
        have = np.stack([boxes[assignment.members(home, p)].sum(axis=0) for p in (0, 1)])
        return float((labelled * ((have - wanted) / np.maximum(wanted, 1)) ** 2).sum())

    after = assignment.balance(home, conflict, boxes, wanted, labelled, rng)
    assert distance(after) <= distance(home)
    assert ((after == assignment.SHARED) == (home == assignment.SHARED)).all()
    for p in (0, 1):
        assert (after == p).sum() == (home == p).sum()
        assert conflict[p, after == p].sum() == conflict[p, home == p].sum()


def test_less_conflict_paints_over_more_of_the_same_images() -> None:
    shown = mixed(40, 3)
    plans = [plan_of(shown, conflict=level, method="erase") for level in (1.0, 0.4, 0.3, 0.0)]
    for one, next_one in itertools.pairwise(plans):
        for p in (0, 1):
            assert one.parts[p].images.tolist() == next_one.parts[p].images.tolist()
            assert (one.parts[p].labelled == next_one.parts[p].labelled).all()
            assert set(one.parts[p].erased_images.tolist()) < set(next_one.parts[p].erased_images.tolist())


def test_less_conflict_marks_more_of_the_same_images_as_they_come() -> None:
    shown = mixed(40, 3)
    plans = [plan_of(shown, conflict=level, method="mark") for level in (1.0, 0.4, 0.3, 0.0)]
    as_they_come = plan_of(shown)
    for one, next_one in itertools.pairwise([as_they_come, *plans]):
        for p in (0, 1):
            assert one.parts[p].images.tolist() == next_one.parts[p].images.tolist()
            assert (one.parts[p].labelled == next_one.parts[p].labelled).all()
            assert not next_one.parts[p].erased.any()
    for one, next_one in itertools.pairwise(plans):
        for p in (0, 1):
            assert set(one.parts[p].marked_images.tolist()) < set(next_one.parts[p].marked_images.tolist())
    for part in plans[-1].parts:  # at 0 every foreign object of the part
        inside = np.isin(plans[-1].train.image_of_box(), part.images)
        assert (part.marked == (inside & ~part.labelled)).all()
    with pytest.raises(UserError, match=r"0\.99 cannot be reached by marking; possible is: left 0\.00 to "):
        plan_of(shown, conflict=0.99, method="mark")


def test_a_refusal_names_the_range_and_its_ends_are_accepted() -> None:
    shown = [{"a", "b"}] * 16 + [{"a"}] * 2 + [{"b"}] * 2
    with pytest.raises(UserError) as caught:
        plan_of(shown, conflict=0.1)
    message = str(caught.value)
    assert "equal shares 0.80 to 1.00" in message
    assert "--images 2 or fewer" in message
    assert [len(p.conflict_images) for p in plan_of(shown, conflict=0.8).parts] == [8, 8]
    assert [len(p.conflict_images) for p in plan_of(shown, conflict=0.1, images=2).parts] == [0, 0]


def test_objects_under_labelled_ones_are_not_painted_over() -> None:
    """A face lies inside its person: without the person's pixels it cannot go."""
    builder = IndexBuilder("")
    for number in range(8):
        builder.image(f"{number}.png", SIZE, SIZE)
        builder.box((4, 4, 40, 44), 0)
        builder.box((10, 6, 20, 16), 1)
    index = builder.build(("person", "face"))
    with pytest.raises(UserError, match=r"persons 1.00 to 1.00 \(in 4 image\(s\) foreign objects lie under"):
        split_dataset(index, index, {"persons": ["person"], "faces": ["face"]}, conflict=0.0, method="erase")


# ------------------------------------------------------------------------------------------- pixels


@given(seed=st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_painting_over_changes_only_foreign_pixels_outside_kept_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    corner = rng.uniform(0, 35, (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 14, (5, 2))], 1).astype(np.float32)
    boxes = np.minimum(boxes, [50, 40, 50, 40]).astype(np.float32)
    out = erase(pixels, boxes[:3], boxes[3:])
    changed = (out != pixels).any(axis=2)
    assert not (changed & ~mask_of(boxes[:3], 40, 50)).any()
    assert not (changed & mask_of(boxes[3:], 40, 50)).any()


def test_painted_colour_is_the_local_background() -> None:
    pixels = np.full((40, 80, 3), 50, np.uint8)
    pixels[:, 40:] = 180
    pixels[10:20, 10:20], pixels[10:20, 60:70] = (255, 0, 0), (0, 255, 0)
    boxes = np.array([[10, 10, 20, 20], [60, 10, 70, 20]], np.float32)
    expected = np.full((40, 80, 3), 50, np.uint8)
    expected[:, 40:] = 180
    assert (erase(pixels, boxes, np.zeros((0, 4), np.float32)) == expected).all()


def test_painting_over_a_whole_picture_works() -> None:
    pixels = np.full((8, 8, 3), 7, np.uint8)
    box = np.array([[0, 0, 8, 8]], np.float32)
    assert (erase(pixels, box, box[:0]) == 7).all()


def test_a_quarter_may_stay_under_kept_boxes() -> None:
    foreign = np.array([[0, 0, 20, 20]], np.float32)
    assert can_be_erased(foreign, np.array([[0, 0, 10, 10]], np.float32), 40, 40)
    assert not can_be_erased(foreign, np.array([[0, 0, 10, 11]], np.float32), 40, 40)


@pytest.mark.parametrize("look", list(LOOKS))
def test_a_look_is_deterministic_and_keeps_the_size(look: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    one, same = (with_look(pixels, look, 5, "x.jpg") for _ in range(2))
    assert one.shape == pixels.shape
    assert one.dtype == np.uint8
    assert (one == same).all()
    assert (one != pixels).any()
    random = (with_look(pixels, look, 5, "y.jpg") != one).any()
    assert random == (look == "blur_noise")


def test_looks_do_what_they_say() -> None:
    grey = np.full((10, 10, 3), 100, np.uint8)
    assert (with_look(grey, "grey_dark", 0, "") == 55).all()
    assert with_look(grey, "warm", 0, "")[0, 0].tolist() == [112, 97, 68]
    assert with_look(grey, "cold", 0, "")[0, 0].tolist() == [72, 95, 115]
    assert (with_look(grey, "faded", 0, "") == 160).all()
    assert (with_look(grey, "original", 0, "") == grey).all()


def test_pictures_are_read_as_training_reads_them(tmp_path: Path) -> None:
    from crossdet.data.decoding import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        for size in ((12, 20), (20, 12)):
            if name == "deep.png" and size == (20, 12):
                continue
            mine, theirs = read_picture(tmp_path / name, size), read_image(tmp_path / name, size)
            assert (mine == theirs.permute(1, 2, 0).numpy()).all()


# ------------------------------------------------------------------------------------------- mistakes


@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=12),
    share=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 9),
    method=st.sampled_from(["choose", "erase"]),
)
@settings(max_examples=40, deadline=None)
def test_groups_stay_together(sizes: list[int], share: float, seed: int, method: Any) -> None:
    of = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    groups = Groups(of, 0, tuple(map(str, range(len(sizes)))))
    plan = plan_of(mixed(len(of), seed), share=share, seed=seed, groups=groups, method=method)
    homes = [set(part.images.tolist()) for part in plan.parts]
    for number in range(len(sizes)):
        own = set(np.flatnonzero(of == number).tolist())
        assert [len(own & home) for home in homes] in ([len(own), 0], [0, len(own)], [len(own)] * 2)
    assert set.union(*homes) == set(range(len(of)))
    assert abs(len(homes[0]) - len(homes[1])) <= max(sizes)
    again = plan_of(mixed(len(of), seed), share=share, seed=seed, groups=groups, method=method)
    assert all(a.images.tolist() == b.images.tolist() for a, b in zip(plan.parts, again.parts, strict=True))
    assert summary(plan)["groups"] == len(sizes)


def test_what_groups_cannot_have() -> None:
    groups = Groups(np.zeros(8, np.int64), 0, ("film",))
    with pytest.raises(UserError, match="--group-by: nothing is left for right: 8 pictures in 1 groups"):
        plan_of(mixed(8), groups=groups)
    with pytest.raises(UserError, match="would tear the groups of --group-by apart; take --conflict-by mark"):
        plan_of(mixed(8), groups=groups, conflict=0.5)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        plan_of(
            mixed(10),
            {"left": ["a", "bb"], "images": []},
            looks={"lft": "warm", "left": "wrm"},
            share=1.5,
            conflict=-1.0,
            method="crop",  # type: ignore[arg-type]
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "split: 9 mistake(s)"
    for text in (
        "--part left: unknown class 'bb'; did you mean",
        "--part images: expected a name of letters",
        "--part images: no class",
        "--part: b, c in no part",
        "--look lft=warm: unknown part 'lft'; did you mean 'left'?",
        "--look left=wrm: unknown look 'wrm'; did you mean 'warm'?",
        "--share 1.5: expected a number from 0 to 1",
        "--conflict -1: expected a number from 0 to 1",
        "--conflict-by crop: unknown way 'crop'",
    ):
        assert sum(text in line for line in lines) == 1, text


def test_unreachable_conflict_is_told_together_with_a_wrong_look() -> None:
    with pytest.raises(UserError) as caught:
        plan_of([{"a", "b"}] * 10, conflict=0.0, looks={"left": "wrm"})
    assert "--look left=wrm" in str(caught.value)
    assert "--conflict 0 cannot be reached" in str(caught.value)


def test_one_part_and_too_few_images_are_mistakes() -> None:
    with pytest.raises(UserError, match="at least two parts"):
        plan_of(mixed(10), {"all": list(CLASSES)})
    with pytest.raises(UserError, match=r"2 parts, but only 1 training image"):
        plan_of(mixed(1))
