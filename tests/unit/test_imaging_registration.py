"""Registration, resampling and membranes against references written from their equations, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inlay.imaging import registration
from inlay.imaging.boxes import Box
from inlay.imaging.membrane import membrane
from inlay.imaging.registration import AFFINE, MODELS, SHIFT, SHIFT_AND_SCALE, register
from inlay.imaging.resample import crop_resized, resample, warp_affine
from inlay.imaging.views import resize_image

few = settings(max_examples=8)


def texture(height=200, width=240, seed=0, sigma=2.0):
    """A smooth random picture (H, W) in [0, 1] without a period."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    image = ndimage.gaussian_filter(noise, sigma) + 0.5 * ndimage.gaussian_filter(noise, 4 * sigma)
    return (image - image.min()) / np.ptp(image)


def moved(image, matrix, shift):
    """The picture in which position x of `image` is at matrix @ x + shift, both in continuous pixels."""
    inverse = np.linalg.inv(matrix)
    start = inverse @ (0.5 - shift) - 0.5
    return ndimage.affine_transform(image, inverse, start, order=3, mode="mirror")


def hole(shape, box=(70, 130, 80, 150)):
    known = np.ones(shape, bool)
    known[box[0] : box[1], box[2] : box[3]] = False
    return known


# -- the least-squares problem ------------------------------------------------------------


def problem(points=150):
    rng = np.random.default_rng(1)
    image = texture(60, 70)
    positions = np.stack([rng.uniform(8, 52, points), rng.uniform(8, 62, points)], 1)
    coefficients = ndimage.spline_filter(image, order=3, output=np.float64, mode="mirror")
    return image, registration.Problem(
        coefficients, rng.random(points), positions, np.array([30.0, 35.0]), 35.0
    )


def test_a_spline_is_sampled_as_scipy_does():
    image, task = problem()
    value, _ = registration.sample_spline(task.coefficients, task.points)
    expected = ndimage.map_coordinates(image, task.points.T - 0.5, order=3, mode="mirror")
    assert np.abs(value - expected).max() < 1e-12


@pytest.mark.parametrize("model", MODELS)
def test_the_jacobian_is_the_derivative_of_the_residuals(model):
    _, task = problem()
    k = registration.GEOMETRY[model]
    rng = np.random.default_rng(2)
    parameters = rng.normal(0, 0.02, k + 12)
    parameters[k] += 1.1
    _, jacobian = task.residuals(parameters, model)
    assert jacobian.shape == (len(task.points), k + 12)
    step = 1e-6
    for number in range(k + 12):
        change = np.zeros(k + 12)
        change[number] = step
        ahead, _ = task.residuals(parameters + change, model)
        behind, _ = task.residuals(parameters - change, model)
        assert np.abs((ahead - behind) / (2 * step) - jacobian[:, number]).max() < 1e-6


def test_residuals_follow_the_equation():
    """g(x) G(W(x; p)) + b(x) - R(x), point by point."""
    image, task = problem(20)
    parameters = np.random.default_rng(3).normal(0, 0.02, 15)
    parameters[3] += 1
    residual, _ = task.residuals(parameters, SHIFT_AND_SCALE)
    for point, target, found in zip(task.points, task.targets, residual, strict=True):
        y, x = (point - task.centre) / task.unit
        down, right, scale = parameters[:3] * task.unit
        position = point + np.array([down + scale * y, right + scale * x])
        value = ndimage.map_coordinates(image, (position - 0.5)[:, None], order=3, mode="mirror")[0]
        light = np.array([1, y, x, y * y, y * x, x * x])
        expected = light @ parameters[3:9] * value + light @ parameters[9:] - target
        assert abs(found - expected) < 1e-10


# -- what is found ------------------------------------------------------------------------


def largest_error(found, matrix, shift, shape):
    corners = np.array([[0, 0], [0, shape[1]], [shape[0], 0], [shape[0], shape[1]]], float)
    expected = corners @ matrix.T + shift
    return np.linalg.norm(corners @ found.matrix[:, :2].T + found.matrix[:, 2] - expected, axis=1).max()


@few
@given(st.integers(0, 50), st.floats(-18, 18), st.floats(-18, 18), st.floats(0.9, 1.1))
def test_a_shift_and_scale_is_found_whatever_was_painted(seed, down, right, scale):
    image = texture(seed=seed)
    known, centre = hole(image.shape), np.array(image.shape) / 2
    content = np.where(known, image, texture(seed=seed + 1000))
    matrix = scale * np.eye(2)
    shift = centre - matrix @ centre + [down, right]
    painted = 0.8 * moved(content, matrix, shift) + 0.1
    found = register(image, painted, known)
    rim = np.argwhere(~known) + 0.5
    motion = np.linalg.norm(rim @ matrix.T + shift - rim, axis=1).max()
    if abs(motion - registration.STILL) > 0.1:  # nearer, the error of the fit decides
        assert found.applies == (motion > registration.STILL), found.reason
    if found.applies:
        assert largest_error(found, matrix, shift, image.shape) < 0.1
    else:
        assert "in place already" in found.reason


def test_each_model_finds_what_it_describes_and_affine_finds_shears():
    image, known = texture(seed=5), hole((200, 240))
    centre = np.array(image.shape) / 2
    matrix = np.array([[1.03, 0.02], [-0.015, 0.98]])
    shift = centre - matrix @ centre + [3.2, -4.7]
    found = register(image, moved(image, matrix, shift), known, AFFINE)
    assert found.applies
    assert largest_error(found, matrix, shift, image.shape) < 0.1
    found = register(image, moved(image, np.eye(2), np.array([3.2, -4.7])), known, SHIFT)
    assert found.applies
    assert np.abs(found.matrix[:, 2] - [3.2, -4.7]).max() < 0.02
    assert np.array_equal(found.matrix[:, :2], np.eye(2))


def test_a_vignette_and_a_gradient_do_not_move_the_result():
    image, known = texture(seed=6), hole((200, 240))
    y, x = np.mgrid[:200, :240] / 240
    painted = (
        moved(image, np.eye(2), np.array([1.4, -2.3])) * (1 - 0.5 * ((y - 0.4) ** 2 + (x - 0.5) ** 2))
        + 0.1 * x
    )
    found = register(image, painted, known)
    assert np.abs(np.array(found.shift_at(100, 120)) - [1.4, -2.3]).max() < 0.02


def noise(seed, scale=0.01):
    return np.random.default_rng(seed).normal(0, scale, (200, 240))


STRIPES = np.tile(0.5 + 0.3 * np.sin(np.arange(240) / 5), (200, 1))
RAMP = np.tile(np.linspace(0, 1, 240), (200, 1))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (np.full((200, 240), 0.5), np.full((200, 240), 0.5), "surroundings"),
        (0.5 + noise(1), 0.5 + noise(2), "do not match"),
        (RAMP + noise(1), RAMP + noise(2), "do not match"),
        (STRIPES + noise(1), np.roll(STRIPES, 2, 1) + noise(2), "too uniform to align"),
        (texture(seed=1), texture(seed=2), "do not match"),
    ],
)
def test_what_cannot_be_aligned_stays_in_place(first, second, reason):
    found = register(first, second, hole((200, 240)))
    assert not found.applies
    assert reason in found.reason


def test_nothing_left_outside_the_mask_is_reported():
    image = texture()
    found = register(image, image, np.zeros(image.shape, bool))
    assert found.reason == "too little of the picture is left outside the mask to compare"
    assert np.array_equal(found.matrix, np.eye(2, 3))


def test_an_implausible_motion_is_refused():
    image = texture(400, 400, seed=7, sigma=4)
    shift = np.array([0.0, 96.0])
    found = register(image, moved(image, np.eye(2), shift), np.ones((400, 400), bool))
    assert not found.applies


# -- resampling ---------------------------------------------------------------------------


def keys(x):
    """Keys 1981, eq. 15, with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resampled_by_hand(values, step, start, count):
    width, result = max(1.0, step), []
    for number in range(count):
        centre = start + step * (number + 0.5)
        taps = range(int(centre - 2 * width) - 2, int(centre + 2 * width) + 3)
        weights = np.array([keys((tap + 0.5 - centre) / width) for tap in taps])
        inside = [min(max(tap, 0), len(values) - 1) for tap in taps]
        result.append(weights @ values[inside] / weights.sum())
    return np.array(result)


@given(st.floats(0.2, 4), st.floats(-5, 25), st.integers(1, 20))
def test_resampling_follows_its_kernel(step, start, count):
    values = np.random.default_rng(0).random(23)
    picture = torch.from_numpy(values)[None, :, None, None]
    result = resample(picture, (step, start, count), (1.0, 0.0, 1))
    assert np.abs(result[0, :, 0, 0].numpy() - resampled_by_hand(values, step, start, count)).max() < 1e-12


@given(st.integers(1, 20), st.integers(1, 20), st.integers(-4, 8), st.integers(-4, 8))
def test_whole_pixels_are_copied(height, width, top, left):
    picture = torch.rand(2, 13, 17, 3)
    box = Box(top, left, top + height, left + width)
    crop = crop_resized(picture, box, height, width)
    rows = torch.arange(top, top + height).clamp(0, 12)
    columns = torch.arange(left, left + width).clamp(0, 16)
    assert torch.equal(crop, picture[:, rows[:, None], columns])


def test_resampling_is_the_hosts_bicubic_away_from_the_border():
    picture = torch.rand(1, 120, 90, 3)
    ours = resample(picture, (120 / 70, 0.0, 70), (90 / 150, 0.0, 150)).clamp(0, 1)
    assert (ours - resize_image(picture, 70, 150))[:, 6:-6, 6:-6].abs().max() < 1e-5


def test_an_affine_warp_samples_where_the_matrix_leads():
    """On a picture whose values are its positions."""
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    picture = torch.stack([(rows + 0.5) / 60, (columns + 0.5) / 80, 0 * rows], -1)[None]
    matrix = torch.tensor([[1.02, 0.03, -2.0], [-0.04, 0.97, 3.0]], dtype=torch.float64)
    warped = warp_affine(picture, matrix)[0]
    for row, column in ((20, 30), (40, 55), (31, 12)):
        position = matrix[:, :2] @ torch.tensor([row + 0.5, column + 0.5], dtype=torch.float64) + matrix[:, 2]
        assert torch.allclose(warped[row, column, :2].double(), position / torch.tensor([60, 80]), atol=1e-4)


# -- gradient domain ----------------------------------------------------------------------


def laplace(values, unknown):
    """The discrete Laplace equation solved directly; the normal derivative is zero at the border."""
    from scipy.sparse import lil_matrix
    from scipy.sparse.linalg import spsolve

    height, width = unknown.shape
    number = np.cumsum(unknown).reshape(unknown.shape) - 1
    matrix, right = lil_matrix((unknown.sum(), unknown.sum())), np.zeros(unknown.sum())
    for y, x in np.argwhere(unknown):
        row = number[y, x]
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= v < height and 0 <= u < width):
                continue
            matrix[row, row] += 1
            if unknown[v, u]:
                matrix[row, number[v, u]] -= 1
            else:
                right[row] += values[v, u]
    solved = values.copy()
    solved[unknown] = spsolve(matrix.tocsr(), right)
    return solved


@pytest.mark.parametrize("size", [20, 47, 90])
def test_a_membrane_solves_laplaces_equation(size):
    y, x = np.mgrid[:size, : size + 7]
    unknown = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.4 * size) ** 2
    unknown |= (abs(y - size / 2) < 4) & (x > size / 2)
    values = np.sin(y / 9) + np.cos(x / 7)
    found = membrane(torch.from_numpy(values)[None], torch.from_numpy(unknown))[0].numpy()
    assert np.array_equal(found[~unknown], values[~unknown])
    assert np.abs(found - laplace(values, unknown)).max() < 0.01 * np.ptp(values)


def test_a_membrane_of_nothing_known_is_zero_and_of_everything_known_is_itself():
    values = torch.rand(3, 20, 30)
    assert not membrane(values, torch.ones(20, 30, dtype=torch.bool)).any()
    assert torch.equal(membrane(values, torch.zeros(20, 30, dtype=torch.bool)), values)
