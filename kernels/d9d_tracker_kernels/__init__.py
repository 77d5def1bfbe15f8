"""Kernels of d9d_tracker: the bottom layer, which knows NumPy, torch and triton only.

`binning` and `lanes`, how rows and slots are laid out, do without torch. Importing `ops` or `scalars` registers the
operators `d9d_tracker::histogram_`, `histogram_many_`, `add_counts_` and `merge_scalars_`.
"""
