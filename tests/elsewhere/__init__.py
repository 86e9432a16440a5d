"""The tests as others run them: on other processors, in other folders, as another user."""
