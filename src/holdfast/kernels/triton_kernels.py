"""The GPU programs of the head: sums over the vocabulary, and dL/dlogits, both from tiles that never leave the chip.

Importing this module needs Triton. Names and formulas are those of `sums`; logits are float32 from the accumulator on.
Helpers with an underscore run inside the two kernels.
"""

# pyright: basic, reportMissingImports=false
import triton
import triton.language as tl

SERIES = tl.constexpr(0.25)


@triton.jit
def _bend(u):
    u2 = u * u
    series = u2 * (0.5 - u * (1 / 6 - u * (1 / 24 - u * (1 / 120 - u * (1 / 720 - u / 5040)))))
    return tl.where(tl.abs(u) < SERIES, series, tl.exp(-u) - 1 + u)


@triton.jit
def _tanh(x):
    x2 = x * x
    series = x * (1 - x2 * (1 / 3 - x2 * (2 / 15 - x2 * (17 / 315))))
    return tl.where(tl.abs(x) < 0.1, series, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _logits(
    hidden, weight, bias, rows, columns, temperature, n_rows, n_columns, scale, softcap, width: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    row_ok, column_ok = rows < n_rows, columns < n_columns
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        depth_ok = depth < width
        a = tl.load(
            hidden + rows[:, None].to(tl.int64) * width + depth[None, :],
            mask=row_ok[:, None] & depth_ok[None, :],
            other=0.0,
        )
        b = tl.load(
            weight + columns[None, :].to(tl.int64) * width + depth[:, None],
            mask=column_ok[None, :] & depth_ok[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    total *= scale
    if HAS_CAP:
        total = softcap * _tanh(total / softcap)
    if HAS_TEMPERATURE:
        total /= temperature[:, None]
    return total


@triton.jit
def _move(centre, mass, drift, curve, spread, target):
    """Sums against another centre; slices without mass stay as they are."""
    move = tl.where(mass > 0, centre - target, 0.0)
    rise = _bend(move)
    fall = rise - move
    keep = fall + 1
    return (
        drift + move * mass,
        keep * curve + rise * mass - drift * fall,
        keep * keep * spread + 2 * keep * fall * (curve - drift) + fall * fall * mass,
    )


@triton.jit
def sums_kernel(
    out, hidden, weight, bias, targets, temperatures, r_hidden, r_weight, r_bias, r_logits,
    n_rows, n_columns, first_token, out_rows, scale, softcap, r_scale, r_softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, R_KIND: tl.constexpr,
    R_HAS_BIAS: tl.constexpr, R_HAS_CAP: tl.constexpr, SQUARES: tl.constexpr, FIELDS: tl.constexpr,
    WIDTH: tl.constexpr, R_WIDTH: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sums of one row block over one split of the vocabulary, the sampled token left out, to out[split, :, rows].

    R_KIND: 0 no rollout policy, 1 its hidden states and head, 2 its logits.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < n_rows
    targets_here = tl.load(targets + rows, mask=row_ok, other=-1) - first_token
    temperature = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_TEMPERATURE:
        temperature = tl.load(temperatures + rows, mask=row_ok, other=1.0)
    zero = tl.zeros((ROWS,), dtype=tl.float32)
    peak, mass, first, square, square_first, own = zero - float("inf"), zero, zero, zero, zero, zero
    r_peak, r_mass, centre, drift, curve, spread = zero - float("inf"), zero, zero, zero, zero, zero
    for tile in range(TILES):
        columns = (tl.program_id(1) * TILES + tile) * COLUMNS + tl.arange(0, COLUMNS)
        column_ok = (columns < n_columns)[None, :]
        z = _logits(
            hidden, weight, bias, rows, columns, temperature, n_rows, n_columns, scale, softcap, WIDTH,
            HAS_BIAS, HAS_CAP, HAS_TEMPERATURE, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        z = tl.where(column_ok, z, -1e30)  # no weight, and no infinity to multiply with 0
        sampled = columns[None, :] == targets_here[:, None]
        own += tl.sum(tl.where(sampled, z, 0.0), axis=1)
        highest = tl.maximum(peak, tl.max(z, axis=1))
        rescale = tl.exp(peak - highest)
        shift = tl.where(mass > 0, peak - highest, 0.0)
        if SQUARES:
            square_first = (square_first + shift * square) * rescale * rescale
            square *= rescale * rescale
        first = (first + shift * mass) * rescale
        mass *= rescale
        peak = highest
        below = z - peak[:, None]
        e = tl.where(sampled, 0.0, tl.exp(below))
        mass += tl.sum(e, axis=1)
        first += tl.sum(e * below, axis=1)
        if SQUARES:
            square += tl.sum(e * e, axis=1)
            square_first += tl.sum(e * e * below, axis=1)
        if R_KIND != 0:
            if R_KIND == 1:
                z_r = _logits(
                    r_hidden, r_weight, r_bias, rows, columns, temperature, n_rows, n_columns, r_scale,
                    r_softcap, R_WIDTH, R_HAS_BIAS, R_HAS_CAP, HAS_TEMPERATURE, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
            else:
                where = r_logits + rows[:, None].to(tl.int64) * n_columns + columns[None, :]
                z_r = tl.load(where, mask=row_ok[:, None] & column_ok, other=0.0).to(tl.float32)
                z_r = tl.maximum(z_r, -1e30)
            t_peak = tl.max(tl.where(column_ok, z_r, -float("inf")), axis=1)
            w = tl.where(column_ok, tl.exp(z_r - t_peak[:, None]), 0.0)
            t_mass = tl.sum(w, axis=1)
            change = tl.where(column_ok, z_r - z, 0.0)
            t_centre = tl.sum(w * change, axis=1) / tl.where(t_mass > 0, t_mass, 1.0)
            u = tl.where(column_ok, change - t_centre[:, None], 0.0)
            bent = _bend(u)
            t_drift, t_curve = tl.sum(w * u, axis=1), tl.sum(w * bent, axis=1)
            t_spread = tl.sum(w * (bent - u) * (bent - u), axis=1)
            joint = tl.maximum(r_peak, t_peak)
            old, new = tl.exp(r_peak - joint), tl.exp(t_peak - joint)
            r_mass, t_mass = r_mass * old, t_mass * new
            middle = tl.where(r_mass > 0, centre, t_centre)
            middle += (tl.where(t_mass > 0, t_centre, middle) - middle) * (t_mass / (r_mass + t_mass))
            drift, curve, spread = _move(centre, r_mass, drift * old, curve * old, spread * old, middle)
            t_drift, t_curve, t_spread = _move(t_centre, t_mass, t_drift * new, t_curve * new, t_spread * new, middle)
            drift, curve, spread = drift + t_drift, curve + t_curve, spread + t_spread
            r_mass, r_peak, centre = r_mass + t_mass, joint, middle
    place = out + (tl.program_id(1) * FIELDS).to(tl.int64) * out_rows + rows
    tl.store(place, peak)
    tl.store(place + out_rows, mass)
    tl.store(place + 2 * out_rows, first)
    tl.store(place + 3 * out_rows, square)
    tl.store(place + 4 * out_rows, square_first)
    tl.store(place + 5 * out_rows, r_peak)
    tl.store(place + 6 * out_rows, r_mass)
    tl.store(place + 7 * out_rows, centre)
    tl.store(place + 8 * out_rows, drift)
    tl.store(place + 9 * out_rows, curve)
    tl.store(place + 10 * out_rows, spread)
    tl.store(place + 11 * out_rows, own)


@triton.jit
def dlogits_kernel(
    out, hidden, weight, bias, targets, temperatures, reference, level, slope, token,
    n_rows, n_columns, first_token, first_column, out_columns, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, HAS_SLOPE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dL/d(h·Wᵀ + b) of one tile to out[rows, columns - first_column], in the dtype of `out`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    columns = first_column + places
    row_ok, column_ok = rows < n_rows, (places < out_columns) & (columns < n_columns)
    temperature = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_TEMPERATURE:
        temperature = tl.load(temperatures + rows, mask=row_ok, other=1.0)
    z = _logits(
        hidden, weight, bias, rows, columns, temperature, n_rows, n_columns, scale, softcap, WIDTH,
        HAS_BIAS, HAS_CAP, HAS_TEMPERATURE, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    x = z - tl.load(reference + rows, mask=row_ok, other=0.0)[:, None]
    factor = tl.load(level + rows, mask=row_ok, other=0.0)[:, None]
    if HAS_SLOPE:
        factor += tl.load(slope + rows, mask=row_ok, other=0.0)[:, None] * x
    sampled = columns[None, :] == (tl.load(targets + rows, mask=row_ok, other=-1) - first_token)[:, None]
    dz = tl.where(sampled, tl.load(token + rows, mask=row_ok, other=0.0)[:, None], tl.exp(x) * factor)
    if HAS_TEMPERATURE:
        dz /= temperature[:, None]
    if HAS_CAP:
        capped = z * temperature[:, None] / softcap
        dz *= 1 - capped * capped
    dz *= scale
    place = out + rows[:, None].to(tl.int64) * out_columns + places[None, :]
    tl.store(place, dz.to(out.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])
