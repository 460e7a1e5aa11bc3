"""What people are told about their machine and their runs: doctor, watch and profile."""
