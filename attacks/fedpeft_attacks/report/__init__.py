"""The audit report: figures, tables, text and pages."""
