"""IFCA's synthetic experiment: settings, simulation, judgment and figure."""
