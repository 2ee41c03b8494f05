"""What a comparison shows: tables, charts, a page."""
