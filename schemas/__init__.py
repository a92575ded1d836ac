"""The contract between pipelines and emu: samples, links, shards, manifest, ledger, index, features."""
