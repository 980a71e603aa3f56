"""Images made by a program, for tests and demonstrations: no photograph of a person is needed."""
