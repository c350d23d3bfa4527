"""Drawings as inline SVG: numbers in, `Svg` out.

`scales` -> `svg` -> `frame` -> `plots` and `bars`. Every text is escaped; every chart has a title and a table for
readers that cannot see it.
"""
