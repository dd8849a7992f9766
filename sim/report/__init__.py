"""Reports: tables, figures and timelines made from results."""
