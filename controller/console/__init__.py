"""Pages for people: today one page that shows the state of the fleet."""
