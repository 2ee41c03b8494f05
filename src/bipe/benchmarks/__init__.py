"""What things cost, as ratios inside one run: absolute times are those of one machine on one day."""
