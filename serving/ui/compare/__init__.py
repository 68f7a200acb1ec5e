"""The Compare tab: one question, two to six lanes, answers that grow side by side and can be read again."""
