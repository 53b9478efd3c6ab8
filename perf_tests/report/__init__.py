"""Reports over saved runs: tables in Markdown, and one page with charts and history. Reads JSON only: no torch."""
