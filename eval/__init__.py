"""The eval stage: samples of a cascade, how good and how new they are, and a report."""
