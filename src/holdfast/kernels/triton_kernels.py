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
    hidden, weight, bias, row_start, column_start, temperature, n_rows, n_columns, scale, softcap, width: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # Addresses within a tile fit 32 bits: 64 for every one of them would cost the registers of the sums.
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row_ok, column_ok = rows < n_rows - row_start, columns < n_columns - column_start
    hidden += row_start.to(tl.int64) * width
    weight += column_start.to(tl.int64) * width
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        depth_ok = depth < width
        a = tl.load(
            hidden + rows[:, None] * width + depth[None, :],
            mask=row_ok[:, None] & depth_ok[None, :],
            other=0.0,
        )
        b = tl.load(
            weight + columns[None, :] * width + depth[:, None],
            mask=column_ok[None, :] & depth_ok[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + column_start + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
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
def _position(n_blocks, n_parts, BAND: tl.constexpr):
    """(row block, part of the vocabulary) of this program: bands of BAND parts, row blocks one after another in each.

    Programs that run at the same time then read few row blocks and few parts, which stay in the second-level cache.
    """
    number = tl.program_id(0)
    band = number // (n_blocks * BAND)
    place = number - band * n_blocks * BAND
    width = tl.minimum(BAND, n_parts - band * BAND)
    return place // width, band * BAND + place % width


@triton.jit
def _halves(z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right columns."""
    return tl.split(tl.permute(tl.reshape(z, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _read(logits, row_start, column_start, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Logits from memory as float32, -inf as a number that no product turns into NaN."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < n_rows - row_start)[:, None] & (columns < n_columns - column_start)[None, :]
    place = logits + row_start.to(tl.int64) * n_columns + column_start
    read = tl.load(place + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)
    return tl.maximum(read.to(tl.float32), -1e30)


@triton.jit
def _fold(z, columns, targets, n_columns, peak, mass, first, square, square_first, own, SQUARES: tl.constexpr):
    """Add some columns of logits to the running sums of the current policy, the sampled token left out."""
    z = tl.where((columns < n_columns)[None, :], z, -1e30)  # no weight, and no infinity to multiply with 0
    sampled = columns[None, :] == targets[:, None]
    own += tl.sum(tl.where(sampled, z, 0.0), axis=1)
    highest = tl.maximum(peak, tl.max(z, axis=1))
    rescale = tl.exp(peak - highest)
    shift = tl.where(mass > 0, peak - highest, 0.0)
    if SQUARES:
        square_first = (square_first + shift * square) * rescale * rescale
        square *= rescale * rescale
    first = (first + shift * mass) * rescale
    mass *= rescale
    below = z - highest[:, None]
    e = tl.where(sampled, 0.0, tl.exp(below))
    mass += tl.sum(e, axis=1)
    first += tl.sum(e * below, axis=1)
    if SQUARES:
        square += tl.sum(e * e, axis=1)
        square_first += tl.sum(e * e * below, axis=1)
    return highest, mass, first, square, square_first, own


@triton.jit
def _fold_rollout(z, z_r, column_ok, peak, mass, centre, drift, curve, spread):
    """Add some columns to the running sums of the rollout policy against the current one."""
    t_peak = tl.max(tl.where(column_ok, z_r, -float("inf")), axis=1)
    w = tl.where(column_ok, tl.exp(z_r - t_peak[:, None]), 0.0)
    t_mass = tl.sum(w, axis=1)
    change = tl.where(column_ok, z_r - z, 0.0)
    t_centre = tl.sum(w * change, axis=1) / tl.where(t_mass > 0, t_mass, 1.0)
    u = tl.where(column_ok, change - t_centre[:, None], 0.0)
    bent = _bend(u)
    t_drift, t_curve = tl.sum(w * u, axis=1), tl.sum(w * bent, axis=1)
    t_spread = tl.sum(w * (bent - u) * (bent - u), axis=1)
    joint = tl.maximum(peak, t_peak)
    old, new = tl.exp(peak - joint), tl.exp(t_peak - joint)
    mass, t_mass = mass * old, t_mass * new
    middle = tl.where(mass > 0, centre, t_centre)
    middle += (tl.where(t_mass > 0, t_centre, middle) - middle) * (t_mass / (mass + t_mass))
    drift, curve, spread = _move(centre, mass, drift * old, curve * old, spread * old, middle)
    t_drift, t_curve, t_spread = _move(t_centre, t_mass, t_drift * new, t_curve * new, t_spread * new, middle)
    return joint, mass + t_mass, middle, drift + t_drift, curve + t_curve, spread + t_spread


@triton.jit
def sums_kernel(
    out, hidden, weight, bias, targets, temperatures, r_hidden, r_weight, r_bias, r_logits,
    n_rows, n_columns, first_token, out_rows, scale, softcap, r_scale, r_softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, R_KIND: tl.constexpr,
    R_HAS_BIAS: tl.constexpr, R_HAS_CAP: tl.constexpr, SQUARES: tl.constexpr, FIELDS: tl.constexpr,
    WIDTH: tl.constexpr, R_WIDTH: tl.constexpr, TILES: tl.constexpr, BAND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALVED: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sums of one row block over one split of the vocabulary, the sampled token left out, to out[split, :, rows].

    R_KIND: 0 no rollout policy, 1 its hidden states and head, 2 its logits. HALVED: a tile of logits is summed as two
    of half the columns, in the order of a program with such tiles; without a rollout policy only.
    """
    block, split = _position(tl.cdiv(n_rows, ROWS), tl.cdiv(n_columns, COLUMNS * TILES), BAND)
    row_start = block * ROWS
    rows = row_start + tl.arange(0, ROWS)
    row_ok = rows < n_rows
    targets_here = tl.load(targets + rows, mask=row_ok, other=-1) - first_token
    temperature = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_TEMPERATURE:
        temperature = tl.load(temperatures + rows, mask=row_ok, other=1.0)
    zero = tl.zeros((ROWS,), dtype=tl.float32)
    peak, mass, first, square, square_first, own = zero - float("inf"), zero, zero, zero, zero, zero
    r_peak, r_mass, centre, drift, curve, spread = zero - float("inf"), zero, zero, zero, zero, zero
    for tile in range(TILES):
        start = (split * TILES + tile) * COLUMNS
        columns = start + tl.arange(0, COLUMNS)
        z = _logits(
            hidden, weight, bias, row_start, start, temperature, n_rows, n_columns, scale, softcap, WIDTH,
            HAS_BIAS, HAS_CAP, HAS_TEMPERATURE, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        if HALVED:
            left, right = _halves(z, ROWS, COLUMNS)
            half = start + tl.arange(0, COLUMNS // 2)
            peak, mass, first, square, square_first, own = _fold(
                left, half, targets_here, n_columns, peak, mass, first, square, square_first, own, SQUARES
            )
            peak, mass, first, square, square_first, own = _fold(
                right, half + COLUMNS // 2, targets_here, n_columns, peak, mass, first, square, square_first, own,
                SQUARES,
            )  # fmt: skip
        else:
            peak, mass, first, square, square_first, own = _fold(
                z, columns, targets_here, n_columns, peak, mass, first, square, square_first, own, SQUARES
            )
        if R_KIND != 0:
            left, right = _halves(z, ROWS, COLUMNS)
            half = start + tl.arange(0, COLUMNS // 2)
            if R_KIND == 1:
                z_r = _logits(
                    r_hidden, r_weight, r_bias, row_start, start, temperature, n_rows, n_columns, r_scale,
                    r_softcap, R_WIDTH, R_HAS_BIAS, R_HAS_CAP, HAS_TEMPERATURE, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
                r_left, r_right = _halves(z_r, ROWS, COLUMNS)
            else:
                r_left = _read(r_logits, row_start, start, n_rows, n_columns, ROWS, COLUMNS // 2)
            r_peak, r_mass, centre, drift, curve, spread = _fold_rollout(
                left, r_left, (half < n_columns)[None, :], r_peak, r_mass, centre, drift, curve, spread
            )
            if R_KIND == 2:
                r_right = _read(r_logits, row_start, start + COLUMNS // 2, n_rows, n_columns, ROWS, COLUMNS // 2)
            r_peak, r_mass, centre, drift, curve, spread = _fold_rollout(
                right, r_right, (half + COLUMNS // 2 < n_columns)[None, :], r_peak, r_mass, centre, drift, curve,
                spread,
            )  # fmt: skip
    place = out + (split * FIELDS).to(tl.int64) * out_rows + rows
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
    WIDTH: tl.constexpr, BAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dL/d(h·Wᵀ + b) of one tile to out[rows, columns - first_column], in the dtype of `out`."""
    block, part = _position(tl.cdiv(n_rows, ROWS), tl.cdiv(out_columns, COLUMNS), BAND)
    row_start, start = block * ROWS, first_column + part * COLUMNS
    rows, places = row_start + tl.arange(0, ROWS), part * COLUMNS + tl.arange(0, COLUMNS)
    columns = first_column + places
    row_ok, column_ok = rows < n_rows, (places < out_columns) & (columns < n_columns)
    temperature = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_TEMPERATURE:
        temperature = tl.load(temperatures + rows, mask=row_ok, other=1.0)
    z = _logits(
        hidden, weight, bias, row_start, start, temperature, n_rows, n_columns, scale, softcap, WIDTH,
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
    place = out + row_start.to(tl.int64) * out_columns + part * COLUMNS
    place += tl.arange(0, ROWS)[:, None] * out_columns + tl.arange(0, COLUMNS)[None, :]
    tl.store(place, dz.to(out.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])
