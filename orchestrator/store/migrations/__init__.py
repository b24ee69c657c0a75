"""The schema, one SQL file per version: `0001_initial.sql` leads from version 0 to version 1."""
