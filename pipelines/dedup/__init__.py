"""Duplicates over a whole dataset: exact and near, of images, texts, addresses and samples, with bounded memory."""
