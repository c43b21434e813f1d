"""Colour matching: remove the colour cast of a painted picture, measured where it should equal the original.

Two corrections: the mean and the deviation of each channel in CIE Lab (Reinhard et al., "Color Transfer
between Images", 2001, eq. 10 and 11, in Lab instead of l-alpha-beta), and a smooth field, which also follows
vignettes, gradients and tone curves. Both give less weight to pixels that differ for another reason (a
shadow that was painted).
"""

from dataclasses import dataclass

import torch

LAB, FIELD = "mean and deviation", "smooth field"
METHODS = (LAB, FIELD)

ROUNDS = 6  # of reweighting
FITTED_AT_ONCE = 2**13  # pixels of one product in the fit of a field
MIN_PIXELS = 60  # known pixels that a correction is measured on
UNSEEN = 0.25  # share of a side without known pixels at one end, from which a field is constant along it
RATIO = (0.5, 2.0)  # of the deviations, and the slopes of the field: what is plausible
D65_WHITE = (0.95047, 1.0, 1.08883)  # D65
TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)  # linear sRGB, IEC 61966-2-1


# -- colour spaces ------------------------------------------------------------------------


def rgb_to_lab(picture: torch.Tensor) -> torch.Tensor:
    """sRGB (..., 3) in [0, 1] to CIE Lab under D65, L in [0, 100]."""
    linear = torch.where(
        picture <= 0.04045, picture / 12.92, ((picture.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    )
    matrix = torch.tensor(TO_XYZ, dtype=picture.dtype, device=picture.device)
    xyz = linear @ matrix.T / torch.tensor(D65_WHITE, dtype=picture.dtype, device=picture.device)
    limit = (6 / 29) ** 3
    f = torch.where(xyz > limit, xyz.clamp(min=limit) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """CIE Lab (..., 3) under D65 to sRGB; values may leave [0, 1]."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -1)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz = xyz * torch.tensor(D65_WHITE, dtype=lab.dtype, device=lab.device)
    matrix = torch.tensor(TO_XYZ, dtype=torch.float64).inverse().to(lab.dtype).to(lab.device)
    linear = xyz @ matrix.T
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    )


def delta_e(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """CIEDE2000 (...) between Lab colours (..., 3); Sharma, Wu and Dalal, "The CIEDE2000 formula", 2005."""
    (l1, a1, b1), (l2, a2, b2) = first.unbind(-1), second.unbind(-1)
    c7 = ((a1.hypot(b1) + a2.hypot(b2)) / 2) ** 7
    g = 0.5 * (1 - (c7 / (c7 + 25.0**7)).sqrt())
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = a1.hypot(b1), a2.hypot(b2)
    h1, h2 = (torch.atan2(b, a).rad2deg() % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0
    turn = (h2 - h1 + 180) % 360 - 180
    turn = torch.where(grey, 0.0, torch.where((h2 - h1) == 180, 180.0, turn))
    dl, dc, dh = l2 - l1, c2 - c1, 2 * (c1 * c2).sqrt() * (turn.deg2rad() / 2).sin()
    ml, mc = (l1 + l2) / 2, (c1 + c2) / 2
    mean = (h1 + h2) / 2
    far = (h1 - h2).abs() > 180
    mean = torch.where(far, torch.where(h1 + h2 < 360, mean + 180, mean - 180), mean)
    mean = torch.where(grey, h1 + h2, mean)
    t = (
        1
        - 0.17 * (mean - 30).deg2rad().cos()
        + 0.24 * (2 * mean).deg2rad().cos()
        + 0.32 * (3 * mean + 6).deg2rad().cos()
        - 0.2 * (4 * mean - 63).deg2rad().cos()
    )
    sl = 1 + 0.015 * (ml - 50) ** 2 / (20 + (ml - 50) ** 2).sqrt()
    sc, sh = 1 + 0.045 * mc, 1 + 0.015 * mc * t
    rotation = 30 * torch.exp(-(((mean - 275) / 25) ** 2))
    c7 = mc**7
    rt = -2 * (c7 / (c7 + 25.0**7)).sqrt() * (2 * rotation).deg2rad().sin()
    dl, dc, dh = dl / sl, dc / sc, dh / sh
    return (dl**2 + dc**2 + dh**2 + rt * dc * dh).clamp(min=0).sqrt()


# -- corrections --------------------------------------------------------------------------


@dataclass(frozen=True)
class LabCorrection:
    """lab -> (lab - mean) * ratio + target, per channel."""

    mean: torch.Tensor
    ratio: torch.Tensor
    target: torch.Tensor

    def apply(self, picture: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Correct (..., H, W, 3) in [0, 1]; the positions are not used."""
        mean, ratio, target = (
            x.to(picture.dtype).to(picture.device) for x in (self.mean, self.ratio, self.target)
        )
        return lab_to_rgb((rgb_to_lab(picture) - mean) * ratio + target).clamp(0, 1)


@dataclass(frozen=True)
class FieldCorrection:
    """Per channel v -> v (g(y, x) + q v) + b(y, x), with g and b polynomials of degree 2 in the position.

    They do not depend on y or x where the known pixels lie at one end of that side alone: a parabola through
    a strip at the border can have any value at the other end.
    Outside the range of values that was measured, the curve goes on along its tangent.
    """

    gain: torch.Tensor  # (6, 3)
    offset: torch.Tensor  # (6, 3)
    curve: torch.Tensor  # (3,)
    lowest: torch.Tensor  # (3,)
    highest: torch.Tensor  # (3,)

    def apply(self, picture: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Correct (..., H, W, 3) in [0, 1] at normalised positions rows (H,) and columns (W,)."""
        corrected = torch.empty_like(picture)
        y, x = (
            axis.to(picture.dtype).to(picture.device) for axis in (rows, columns)
        )  # Apple GPUs: no float64
        y, x = y[:, None], x[None]
        for channel in range(3):
            gain, offset = (
                _polynomial(weights[:, channel].tolist(), y, x) for weights in (self.gain, self.offset)
            )
            value = picture[..., channel]
            known = value.clamp(float(self.lowest[channel]), float(self.highest[channel]))
            curve = float(self.curve[channel])
            slope = (gain + 2 * curve * known).clamp(*RATIO)
            corrected[..., channel] = known * (gain + curve * known) + offset + slope * (value - known)
        return corrected.clamp(0, 1)


Correction = LabCorrection | FieldCorrection


def fit_correction(
    method: str, original: torch.Tensor, painted: torch.Tensor, weight: torch.Tensor
) -> Correction | None:
    """Measure a colour correction on pixels that should be equal.

    Args:
        method: One of `METHODS`.
        original: (H, W, 3) in [0, 1]; positions are normalised to [-1, 1] along both sides.
        painted: (H, W, 3) in [0, 1], aligned with the original.
        weight: (H, W), how much a pixel counts; 0 where the two may differ.

    Returns:
        The correction of the painted picture, or None if too few pixels count.
    """
    original, painted, weight = (x.cpu().double() for x in (original, painted, weight))
    known = weight > 0
    if known.sum() < MIN_PIXELS:
        return None
    pixels, targets = painted[known], original[known]
    if method == LAB:
        return _fit_lab(rgb_to_lab(pixels), rgb_to_lab(targets), weight[known])
    return _fit_field(pixels, targets, weight[known], _positions(known))


def _fit_lab(pixels: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> LabCorrection:
    agrees = torch.ones_like(weight)
    for _ in range(ROUNDS):
        share = (weight * agrees / (weight * agrees).sum())[:, None]
        mean, target = (share * pixels).sum(0), (share * targets).sum(0)
        spread, wanted = (
            (share * (x - m) ** 2).sum(0).sqrt() for x, m in ((pixels, mean), (targets, target))
        )
        ratio = torch.where(spread > 0.5, wanted / spread.clamp(min=1e-6), 1.0).clamp(*RATIO)
        residual = ((pixels - mean) * ratio + target - targets).norm(dim=-1)
        agrees = _cauchy(residual)
    return LabCorrection(mean, ratio, target)


def _fit_field(
    pixels: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor
) -> FieldCorrection:
    """Reweighted least squares per channel, with a weak prior for the identity."""
    unseen = torch.maximum(positions.amin(0) + 1, 1 - positions.amax(0)) / 2
    light = _monomials(torch.where(unseen > UNSEEN, 0.0, positions))
    parameters = torch.zeros(13, 3, dtype=pixels.dtype, device=pixels.device)
    parameters[0] = 1
    agrees = torch.ones_like(weight)
    prior = torch.full((13,), 1e-4, dtype=pixels.dtype, device=pixels.device)
    prior[0] = prior[6] = 1e-6
    parts = [slice(i, i + FITTED_AT_ONCE) for i in range(0, len(pixels), FITTED_AT_ONCE)]
    for _ in range(ROUNDS):
        share = (weight * agrees / (weight * agrees).sum())[:, None]
        squares = torch.zeros_like(weight)
        for channel in range(3):
            normal, moment = torch.diag(prior), prior * 0
            moment[0] = prior[0]
            for part in parts:
                basis = _field_basis(light[part], pixels[part, channel])
                normal += basis.T @ (share[part] * basis)
                moment += basis.T @ (share[part, 0] * targets[part, channel])
            parameters[:, channel] = torch.linalg.solve(normal, moment)
            for part in parts:
                fitted = _field_basis(light[part], pixels[part, channel]) @ parameters[:, channel]
                squares[part] += (fitted - targets[part, channel]) ** 2
        agrees = _cauchy(squares.sqrt())
    edges = torch.tensor([0.01, 0.99], dtype=pixels.dtype, device=pixels.device)
    step = max(1, len(pixels) // 50_000)
    lowest, highest = torch.quantile(pixels[::step], edges, dim=0)
    return FieldCorrection(parameters[:6], parameters[6:12], parameters[12], lowest, highest)


def _field_basis(light: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(N, 13): gain and offset at every position, and the curve."""
    return torch.cat([light * value[:, None], light, value[:, None] ** 2], 1)


def _cauchy(residual: torch.Tensor) -> torch.Tensor:
    """Weights in (0, 1] of nonnegative residuals."""
    scale = (residual.median() * 1.4826).clamp(min=1e-4)
    return 1 / (1 + (residual / (2.385 * scale)) ** 2)


def _positions(known: torch.Tensor) -> torch.Tensor:
    """(N, 2) normalised positions of the true pixels."""
    rows, columns = (normalised(length) for length in known.shape)
    y, x = known.nonzero(as_tuple=True)
    return torch.stack([rows[y], columns[x]], 1)


def normalised(length: int) -> torch.Tensor:
    """Centres of `length` pixels in [-1, 1], float64 on the CPU."""
    return (torch.arange(length, dtype=torch.float64) + 0.5) * (2 / length) - 1


def _monomials(positions: torch.Tensor) -> torch.Tensor:
    y, x = positions.unbind(-1)
    return torch.stack([torch.ones_like(x), y, x, y * y, y * x, x * x], -1)


def _polynomial(weights: list[float], y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    one, down, right, down2, both, right2 = weights
    return (one + y * (down + down2 * y)) + x * (right + both * y + right2 * x)
