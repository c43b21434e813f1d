"""Image registration: find how a painted picture is shifted and scaled against the original.

A model that repaints a picture moves and enlarges what it should keep. The pixels around the mask show the
same in both pictures, so they determine a transformation from the original's pixel positions to the painted
one's:

    minimise over p, g, b   sum_x w(x) rho( g(x) G(W(x; p)) + b(x) - R(x) )

with the reference R, the painted picture G, the transformation W (shift, shift and scale, or affine), a gain
g and an offset b that are polynomials of degree 2 in the position (exposure, white balance, vignettes), and
the Cauchy function rho, which reduces the weight of pixels that differ. Solved by Gauss-Newton with
reweighting from coarse to fine (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004; Bartoli,
"Groupwise geometric and photometric direct image registration", PAMI 2008). It starts at the best shift and
scale of a masked normalised cross-correlation on the coarsest level (Padfield, "Masked object registration
in the Fourier domain", 2012, eq. 14 to 19).

Positions are (row, column) in continuous pixels: the centre of the first pixel is (0.5, 0.5).
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, map_coordinates, spline_filter

SHIFT, SHIFT_AND_SCALE, AFFINE = "shift", "shift and scale", "affine"
MODELS = (SHIFT, SHIFT_AND_SCALE, AFFINE)
GEOMETRY = {SHIFT: 2, SHIFT_AND_SCALE: 3, AFFINE: 6}  # parameters of each transformation

COARSEST = 128  # pixels of the longer side of the level that is searched
MAX_POINTS = 25_000  # pixels of a level that take part, one of each square of the image
ITERATIONS = 12  # of Gauss-Newton on one level, at most
CONVERGED = 0.01  # pixels of the level: mean motion of a step that ends the iterations
SCALES = np.arange(0.86, 1.161, 0.02)  # searched on the coarsest level
CANDIDATES = 3  # starts that are refined on the coarsest level
MAX_SHIFT = 0.2  # of the longer side; also the range of the search
MAX_SCALE = 1.25  # and its inverse: the largest and the smallest plausible scale
MAX_SHEAR = 0.1  # largest plausible difference of the affine matrix from a scaled identity matrix
MIN_POINTS = 400  # known pixels of the finest level
MIN_OVERLAP = 0.4  # share of the known pixels that has to lie inside both pictures
MIN_CORRELATION = 0.35  # of the aligned surroundings, without their smooth part
MAX_RIM_ERROR = 0.5  # pixels: largest standard error of the position at the rim
STILL = 0.1  # pixels: smaller motions of the rim are not worth a resampling


@dataclass(frozen=True)
class Alignment:
    """A transformation from positions in the original to positions in the painted picture.

    Attributes:
        matrix: (2, 3) in continuous pixels: painted = matrix[:, :2] @ original + matrix[:, 2].
        reason: Why the picture is left in place; "" if the transformation is to be applied.
        correlation: Of the surroundings after alignment, without their smooth part; NaN if it was not
            measured.
        rim_motion: Largest distance in pixels by which the transformation moves the rim of the mask.
        rim_error: Estimated standard error of the positions at the rim, in pixels.
    """

    matrix: np.ndarray
    reason: str = ""
    correlation: float = float("nan")
    rim_motion: float = 0.0
    rim_error: float = float("nan")

    @property
    def applies(self) -> bool:
        """Whether the alignment is used; otherwise `reason` holds why not."""
        return not self.reason

    @property
    def scale(self) -> float:
        """Enlargement of the painted picture: the square root of the determinant."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def shift_at(self, row: float, column: float) -> tuple[float, float]:
        """(down, right) in pixels by which the painted picture is moved at a position of the original."""
        position = np.array([row, column])
        down, right = self.matrix[:, :2] @ position + self.matrix[:, 2] - position
        return float(down), float(right)

    def resized(self, rows: float, columns: float) -> "Alignment":
        """Return the same transformation where both pictures are larger by these factors."""
        factor = np.diag([rows, columns])
        linear = factor @ self.matrix[:, :2] @ np.linalg.inv(factor)
        size = max(rows, columns)
        matrix = np.column_stack([linear, factor @ self.matrix[:, 2]])
        return replace(
            self, matrix=matrix, rim_motion=self.rim_motion * size, rim_error=self.rim_error * size
        )


def identity(reason: str) -> Alignment:
    """Return the transformation that leaves a picture in place."""
    return Alignment(np.eye(2, 3), reason)


def register(
    reference: np.ndarray, painted: np.ndarray, known: np.ndarray, model: str = SHIFT_AND_SCALE
) -> Alignment:
    """Find the transformation that lays a painted picture on the reference.

    Args:
        reference: (H, W) luminance in [0, 1].
        painted: (H, W) luminance in [0, 1], of the same size.
        known: (H, W) booleans, true where both should show the same; the rest is ignored in the reference's
            frame.
        model: One of `MODELS`.

    Returns:
        The transformation, or `reason` and no motion where it cannot be found or is implausible.
    """
    reference, painted = (np.ascontiguousarray(x, dtype=np.float32) for x in (reference, painted))
    if known.sum() < MIN_POINTS:
        return identity("too little of the picture is left outside the mask to compare")
    levels = _pyramid(reference, painted, known)
    smallest = levels[0]
    fits = [_refined(smallest, start, model) for start in _search(smallest, model)]
    fits = [fit for fit in fits if fit is not None]
    if not fits:
        return identity("the surroundings of the mask are too uniform to align")
    fit = max(fits, key=lambda fit: fit.correlation)
    for coarse, level in pairwise(levels):
        finer = _refined(level, _finer(fit, coarse, level), model)
        if finer is None:
            return identity("the surroundings of the mask are too uniform to align")
        fit = finer
    return _judge(fit, levels[-1], model)


# -- transformation and photometry --------------------------------------------------------


def geometry_basis(positions: np.ndarray, model: str) -> np.ndarray:
    """d W / d p (N, 2, k) at normalised positions (N, 2): shift, scale about the origin, or affine."""
    count = len(positions)
    basis = np.zeros((count, 2, GEOMETRY[model]))
    basis[:, 0, 0] = basis[:, 1, 1] = 1
    if model == SHIFT_AND_SCALE:
        basis[:, :, 2] = positions
    elif model == AFFINE:
        basis[:, 0, 2:4] = positions
        basis[:, 1, 4:6] = positions
    return basis


def photometry_basis(positions: np.ndarray) -> np.ndarray:
    """Polynomials of degree 2 (N, 6) at normalised positions (N, 2)."""
    y, x = positions.T
    return np.stack([np.ones_like(x), y, x, y * y, y * x, x * x], 1)


@dataclass(frozen=True)
class Problem:
    """The least-squares problem of one level.

    Attributes:
        coefficients: (H, W) cubic B-spline coefficients of the painted picture.
        targets: (N,) values of the reference.
        points: (N, 2) their positions in continuous pixels.
        centre: (2,) origin of the normalised positions, in pixels.
        unit: Length of one normalised unit in pixels.
    """

    coefficients: np.ndarray
    targets: np.ndarray
    points: np.ndarray
    centre: np.ndarray
    unit: float

    @property
    def positions(self) -> np.ndarray:
        """(N, 2) positions about the centre, in normalised units."""
        return (self.points - self.centre) / self.unit

    def warped(self, geometry: np.ndarray, model: str) -> np.ndarray:
        """W(x; p) (N, 2) in pixels."""
        return self.points + self.unit * geometry_basis(self.positions, model) @ geometry

    def residuals(self, parameters: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
        """(residuals (N,), Jacobian (N, k + 12)) at the parameters (geometry, gain, offset)."""
        k = GEOMETRY[model]
        geometry, gain, offset = np.split(parameters, [k, k + 6])
        basis, light = geometry_basis(self.positions, model), photometry_basis(self.positions)
        value, slopes = sample_spline(self.coefficients, self.points + self.unit * basis @ geometry)
        gains = light @ gain
        residual = gains * value + light @ offset - self.targets
        motion = self.unit * gains[:, None] * np.einsum("ni,nik->nk", slopes, basis)
        return residual, np.concatenate([motion, light * value[:, None], light], 1)


def sample_spline(coefficients: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) and gradients (N, 2) of a cubic B-spline at positions in continuous pixels.

    Coefficients as `scipy.ndimage.spline_filter(order=3, mode="mirror")` gives them; positions outside are
    moved to the border.
    """
    height, width = coefficients.shape
    weights, slopes, indices = [], [], []
    for axis, length in enumerate((height, width)):
        position = np.clip(points[:, axis] - 0.5, 0, length - 1)
        first = np.minimum(np.floor(position), length - 2)
        t = position - first
        s = 1 - t
        weights.append((s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6))
        slopes.append((-(s**2) / 2, (3 * t**2 - 4 * t) / 2, (4 * s - 3 * s**2) / 2, t**2 / 2))
        taps = [np.abs(first.astype(np.intp) + k) for k in (-1, 0, 1, 2)]
        indices.append([np.where(i >= length, 2 * length - 2 - i, i) for i in taps])
    value, gradient = np.zeros(len(points)), np.zeros((len(points), 2))
    flat = coefficients.ravel()
    for j in range(4):
        row = indices[0][j] * width
        along, slope = np.zeros(len(points)), np.zeros(len(points))
        for k in range(4):
            tap = flat[row + indices[1][k]]
            along += weights[1][k] * tap
            slope += slopes[1][k] * tap
        value += weights[0][j] * along
        gradient[:, 0] += slopes[0][j] * along
        gradient[:, 1] += weights[0][j] * slope
    return value, gradient


# -- levels -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    reference: np.ndarray
    painted: np.ndarray
    known: np.ndarray
    problem: Problem


@dataclass(frozen=True)
class _Fit:
    """Parameters on a level, with the points' correlation, the residuals' scale, and the points' weights."""

    parameters: np.ndarray
    correlation: float
    scale: float
    inside: np.ndarray
    weight: np.ndarray


def _pyramid(reference: np.ndarray, painted: np.ndarray, known: np.ndarray) -> list[_Level]:
    """Levels from coarse to fine, each half as large as the next."""
    levels = [(reference, painted, known)]
    while max(levels[-1][0].shape) > COARSEST and min(levels[-1][0].shape) >= 16:
        images = levels[-1]
        levels.append((_halved(images[0]), _halved(images[1]), _halved(images[2])))
    return [_level(*level) for level in reversed(levels)]


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; of booleans whether all are true. An odd last row or column is repeated."""
    height, width = image.shape
    image = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    blocks = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2)
    means = blocks.all((1, 3)) if image.dtype == bool else blocks.mean((1, 3), dtype=np.float32)
    return np.asarray(means)


def _level(reference: np.ndarray, painted: np.ndarray, known: np.ndarray) -> _Level:
    height, width = reference.shape
    inner = np.asarray(binary_erosion(known, iterations=1 if max(height, width) <= COARSEST else 2))
    points = _textured_points(reference, inner)
    rows, columns = points.T
    problem = Problem(
        spline_filter(painted, order=3, output=np.float64, mode="mirror"),
        reference[rows, columns].astype(np.float64),
        points + 0.5,
        np.array([height / 2, width / 2]),
        max(height, width) / 2,
    )
    return _Level(reference, painted, inner, problem)


def _textured_points(reference: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N, 2) indices of known pixels: of every square the one with the largest gradient, up to POINTS."""
    side = max(1, int(np.ceil(np.sqrt(known.sum() / MAX_POINTS))))
    if side == 1:
        return np.argwhere(known)
    slope = np.hypot(*np.gradient(reference))
    slope[~known] = -1
    rows, columns = (length // side for length in slope.shape)
    squares = slope[: rows * side, : columns * side].reshape(rows, side, columns, side).swapaxes(1, 2)
    squares = squares.reshape(rows, columns, side * side)
    best = squares.argmax(-1)
    row, column = np.nonzero(np.take_along_axis(squares, best[..., None], -1)[..., 0] >= 0)
    inside = best[row, column]
    return np.stack([row * side + inside // side, column * side + inside % side], 1)


# -- the start ----------------------------------------------------------------------------


def _search(level: _Level, model: str) -> list[np.ndarray]:
    """Geometry parameters of `SHIFT_AND_SCALE` with the largest masked correlations, and no motion at all."""
    height, width = level.reference.shape
    weight = level.known.astype(np.float64)
    shape = [next_fast_len(2 * length, real=True) for length in (height, width)]
    detail = _detail(level.reference, weight) * weight
    detail -= weight * detail.sum() / max(weight.sum(), 1)
    fixed = [np.conj(np.asarray(rfft2(image, shape))) for image in (weight, detail, detail**2)]
    other = _detail(level.painted, np.ones_like(weight))
    reach = int(np.ceil(MAX_SHIFT * max(height, width)))
    found = []
    for scale in SCALES if model != SHIFT else (1.0,):
        moved, inside = _scaled(other, scale)
        products = (inside, moved * inside, moved**2 * inside)
        spectra = [np.asarray(rfft2(image, shape)) for image in products]

        def correlate(first: int, second: int, spectra=spectra) -> np.ndarray:
            full = np.asarray(irfft2(fixed[first] * spectra[second], shape))
            return np.roll(full, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]

        count = correlate(0, 0)
        enough = count > MIN_OVERLAP * weight.sum()
        count = np.maximum(count, 1)
        first, second = correlate(1, 0), correlate(0, 1)
        spread = np.maximum(correlate(2, 0) - first**2 / count, 0) * np.maximum(
            correlate(0, 2) - second**2 / count, 0
        )
        limit = 1e-12 * count**2
        score = np.where(
            enough & (spread > limit),
            (correlate(1, 1) - first * second / count) / np.sqrt(np.maximum(spread, limit)),
            -1,
        )
        best = np.unravel_index(score.argmax(), score.shape)
        unit = level.problem.unit
        down, right = (scale * (int(k) - reach) / unit for k in best)
        found.append((score[best], np.array([down, right, scale - 1])))
    found.sort(key=lambda entry: -entry[0])
    return [np.zeros(3), *(start for _, start in found[:CANDIDATES])]


def _detail(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the image without its smooth part, which is averaged over the weighted pixels only."""
    total = gaussian_filter(weight, 4.0, mode="nearest")
    smooth = gaussian_filter(image * weight, 4.0, mode="nearest") / np.maximum(total, 1e-6)
    return image - smooth


def _scaled(image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image at centre + scale * (x - centre), and 1 where that lies inside."""
    height, width = image.shape
    axes = [length / 2 + scale * (np.arange(length) + 0.5 - length / 2) - 0.5 for length in (height, width)]
    inside = np.multiply.outer(
        *((axis >= 0) & (axis <= length - 1) for axis, length in zip(axes, (height, width), strict=True))
    )
    grid = np.meshgrid(*axes, indexing="ij")
    return map_coordinates(image, grid, order=1, mode="nearest"), inside.astype(np.float64)


# -- Gauss-Newton -------------------------------------------------------------------------


def _refined(level: _Level, start: np.ndarray, model: str) -> _Fit | None:
    """Gauss-Newton with Cauchy weights; `start`: geometry of any model, or all parameters of this one.

    Returns None if the points do not determine the transformation.
    """
    problem, k = level.problem, GEOMETRY[model]
    if len(problem.points) < MIN_POINTS // 4:
        return None
    parameters = np.zeros(k + 12)
    if len(start) == len(parameters):
        parameters[:] = start
    else:
        parameters[:k] = _converted(start, model)
        parameters[k] = 1
    basis = geometry_basis(problem.positions, model)
    for step in range(ITERATIONS + 1):
        inside = _inside(problem.warped(parameters[:k], model), level.painted.shape)
        if inside.sum() < max(MIN_POINTS // 4, MIN_OVERLAP * len(inside)):
            return None
        residual, jacobian = problem.residuals(parameters, model)
        if not inside.all():
            residual, jacobian = residual[inside], jacobian[inside]
        scale = max(1.4826 * np.median(np.abs(residual)), 1e-5)
        weight = 1 / (1 + (residual / (2.385 * scale)) ** 2)
        root = np.sqrt(weight)
        jacobian *= root[:, None]  # in place: it is the largest array
        normal = jacobian.T @ jacobian
        ridge = np.diag(normal).mean() * 1e-7
        prior = np.zeros(len(parameters))
        prior[k + 1 : k + 6] = prior[k + 7 :] = 1e-4 * weight.sum() * scale**2
        normal += np.diag(prior + ridge)
        if step == ITERATIONS:
            break
        change = np.linalg.solve(normal, -jacobian.T @ (root * residual) - prior * parameters)
        motion = problem.unit * np.abs(basis @ change[:k]).max(1)
        limit = 2.0 / max(motion.mean(), 2.0)  # pixels of a level in one step
        parameters = parameters + change * limit
        parameters[k] = np.clip(parameters[k], 0.3, 3)
        if motion.mean() < CONVERGED:
            break
    correlation = _correlation(problem, parameters, model, inside, weight)
    return _Fit(parameters, correlation, scale, inside, weight)


def _inside(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(((points >= 0.5) & (points <= np.array(shape) - 0.5)).all(1))


def _correlation(
    problem: Problem, parameters: np.ndarray, model: str, inside: np.ndarray, weight: np.ndarray
) -> float:
    """Weighted correlation of reference and aligned picture after both lost a polynomial of degree 2."""
    value, _ = sample_spline(
        problem.coefficients, problem.warped(parameters[: GEOMETRY[model]], model)[inside]
    )
    light = photometry_basis(problem.positions[inside])
    pair = np.stack([problem.targets[inside], value], 1)
    root = np.sqrt(weight)[:, None]
    pair = root * (pair - light @ np.linalg.lstsq(root * light, root * pair, rcond=None)[0])
    spread = np.sqrt((pair**2).sum(0))
    return float((pair[:, 0] @ pair[:, 1]) / max(spread.prod(), 1e-12))


def _converted(geometry: np.ndarray, model: str) -> np.ndarray:
    """Parameters of `SHIFT_AND_SCALE` for another model."""
    down, right, scale = geometry
    return {
        SHIFT: np.array([down, right]),
        SHIFT_AND_SCALE: np.array([down, right, scale]),
        AFFINE: np.array([down, right, scale, 0, 0, scale]),
    }[model]


def _finer(fit: _Fit, coarse: _Level, level: _Level) -> np.ndarray:
    """Return the parameters on the next level: odd sizes move the centre, the unit is about twice as long."""
    start = fit.parameters.copy()
    start[:2] *= 2 * coarse.problem.unit / level.problem.unit
    return start


def _matrix(parameters: np.ndarray, problem: Problem, model: str) -> np.ndarray:
    """(2, 3) in continuous pixels of the level."""
    down, right, *rest = parameters[: GEOMETRY[model]]
    linear = np.eye(2)
    if model == SHIFT_AND_SCALE:
        linear = linear * (1 + rest[0])
    elif model == AFFINE:
        linear = linear + np.array(rest).reshape(2, 2)
    shift = problem.unit * np.array([down, right]) + problem.centre - linear @ problem.centre
    return np.column_stack([linear, shift])


def _judge(fit: _Fit, level: _Level, model: str) -> Alignment:
    """Decide whether the transformation is applied, and measure it at the rim of the unknown part."""
    problem = level.problem
    matrix = _matrix(fit.parameters, problem, model)
    rim = _rim(level.known)
    moved = rim @ matrix[:, :2].T + matrix[:, 2]
    motion = float(np.linalg.norm(moved - rim, axis=1).max())
    basis = problem.unit * geometry_basis((rim - problem.centre) / problem.unit, model)
    variance = np.einsum("nik,kl,nil->n", basis, _covariance(fit, level, model), basis)
    found = Alignment(
        matrix, "", fit.correlation, motion, float(np.sqrt(np.nan_to_num(variance, nan=np.inf).max()))
    )
    longest = max(level.reference.shape)
    shear = np.abs(matrix[:, :2] - found.scale * np.eye(2)).max()
    centre = np.array(found.shift_at(*problem.centre))
    if not np.isfinite(matrix).all() or fit.correlation < MIN_CORRELATION:
        reason = f"the surroundings of the mask do not match (correlation {fit.correlation:.2f})"
    elif found.rim_error > MAX_RIM_ERROR:
        reason = (
            f"the surroundings of the mask are too uniform to align (uncertain by {found.rim_error:.1f} px)"
        )
    elif not 1 / MAX_SCALE < found.scale < MAX_SCALE:
        reason = f"a scale of {found.scale:.0%} is implausible"
    elif np.abs(centre).max() > MAX_SHIFT * longest:
        reason = f"a shift of {np.abs(centre).max():.0f} px is implausible"
    elif shear > MAX_SHEAR:
        reason = f"a distortion of {shear:.0%} is implausible"
    elif motion < STILL:
        reason = f"it is in place already (within {motion:.2f} px)"
    else:
        reason = ""
    return replace(found, reason=reason)


def _covariance(fit: _Fit, level: _Level, model: str) -> np.ndarray:
    """Covariance of the geometry (k, k), infinite where the pictures share no structure that determines it.

    A sandwich estimate H^-1 N H^-1. Noise has gradients too, which determine nothing: H takes the products
    of one picture's gradients with the other's, in which independent noise cancels; N = sigma^2 J^T W J as
    usual.
    """
    problem, k = level.problem, GEOMETRY[model]
    basis = geometry_basis(problem.positions, model)[fit.inside]
    _, jacobian = problem.residuals(fit.parameters, model)
    jacobian = jacobian[fit.inside, :k]
    coefficients = spline_filter(level.reference, order=3, output=np.float64, mode="mirror")
    _, slopes = sample_spline(coefficients, problem.points[fit.inside])
    expected = problem.unit * np.einsum("ni,nik->nk", slopes, basis)
    weighted = jacobian * fit.weight[:, None]
    shared = weighted.T @ expected
    shared = (shared + shared.T) / 2
    if np.linalg.eigvalsh(shared)[0] <= 0:
        return np.diag(np.full(k, np.inf))
    inverse = np.linalg.inv(shared)
    return inverse @ (weighted.T @ jacobian) @ inverse * fit.scale**2


def _rim(known: np.ndarray) -> np.ndarray:
    """(N, 2) positions of known pixels beside unknown ones, some hundreds; the corners if there are none."""
    height, width = known.shape
    rim = np.argwhere(known & np.asarray(binary_dilation(~known)))
    if not len(rim):
        rim = np.array([[0, 0], [0, width - 1], [height - 1, 0], [height - 1, width - 1]])
    return rim[:: max(1, len(rim) // 400)] + 0.5
