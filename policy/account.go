package policy

// account.go: who wants to know what filters do.

// Account counts what one filter does; see Link. It stands on the way of every call, so it
// should take no longer than a few additions.
type Account interface {
	// Note is told each answer of the filter, by all sessions at once. step is valid during
	// the call and must not be changed.
	Note(s *Session, step *Step)
}
