"""The report: one type (`model.Report`), stored as JSON, and its renderings."""
