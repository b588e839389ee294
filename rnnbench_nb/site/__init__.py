"""Pages that open without a network: of a report, of a drawn digit, and over all reports."""
