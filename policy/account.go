package policy

import "time"

// account.go: who wants to know what filters do and what it costs.

// Account counts what one filter does; see Link. It stands on the way of every call, so it
// should take no longer than a few additions.
type Account interface {
	// Note is told each answer of the filter, by all sessions at once. step is valid during
	// the call and must not be changed.
	Note(s *Session, step *Step)
}

// Usage is what one call of a filter used, besides the time that passed. The zero Usage is
// that of a filter which does not know.
type Usage struct {
	// CPU is what the filter computed, Wait what it waited for others.
	CPU, Wait time.Duration
	// Ticks are how often the host looked whether the filter computes for too long.
	Ticks uint32
	// Memory is what the filter has in the session, in octets.
	Memory int64
}

// Metered is an Instance that knows what its calls use.
type Metered interface {
	Instance
	// Usage returns what the last Decide used, whether it failed or not. It is called after
	// Decide and before Close.
	Usage() Usage
}
