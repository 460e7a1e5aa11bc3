"""Observation of the machine and of runs: doctor, watch and profile."""
