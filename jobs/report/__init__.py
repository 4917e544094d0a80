"""What the report shows, from the tables to figures, pages and text; used by jobs/report_pipeline.py."""
