"""The parts of the paper under the names of the paper."""
