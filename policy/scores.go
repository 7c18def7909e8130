package policy

import (
	"fmt"
	"strconv"
)

// scores.go: figures that filters add up together. A tag is one filter's word; a score is
// the sum of what all filters said under its key, so that none of them need know the others.

// Score is a sum of what filters gave under one key, in thousandths.
type Score struct {
	Key   string
	Milli int64
}

const (
	maxScores   = 64            // keys of a transaction, or of a session outside of them
	maxScoreOps = 256           // of one call
	maxScoreKey = 64            // octets
	maxMilli    = 1_000_000_000 // of one addition: sums cannot overflow
)

// AddScore adds milli thousandths to the score called key: of the transaction, or outside of
// one of the session.
func (e *Edits) AddScore(key string, milli int64) error {
	if e.session == nil || !e.stage.Decides() {
		return ErrPhase
	}
	if key == "" || len(key) > maxScoreKey || milli < -maxMilli || milli > maxMilli {
		return ErrRange
	}
	if e.scores >= maxScoreOps || !hasScore(e.Scores(), key) && len(e.Scores()) >= maxScores {
		return fmt.Errorf("%w: scores", ErrTooMuch)
	}
	e.scores++
	e.log = append(e.log, Edit{Kind: EditScore, Name: key, Milli: milli})
	return nil
}

// Scores returns the scores of session and transaction with the edits so far, in the order
// in which their keys were first given.
func (e *Edits) Scores() []Score {
	if e.session == nil {
		return nil
	}
	all := append([]Score(nil), e.session.Scores...)
	if e.tx != nil {
		for _, s := range e.tx.Scores {
			all = addScore(all, s)
		}
	}
	return e.addScores(all)
}

// addScores adds what this call gave to a list of its own.
func (e *Edits) addScores(list []Score) []Score {
	for _, l := range e.log {
		if l.Kind == EditScore {
			list = addScore(list, Score{l.Name, l.Milli})
		}
	}
	return list
}

func addScore(list []Score, s Score) []Score {
	for i := range list {
		if list[i].Key == s.Key {
			list[i].Milli += s.Milli
			return list
		}
	}
	return append(list, s)
}

func hasScore(list []Score, key string) bool {
	for _, s := range list {
		if s.Key == key {
			return true
		}
	}
	return false
}

// applyScores makes the scores of the call count, in a new list.
func (e *Edits) applyScores() {
	if e.scores == 0 {
		return
	}
	list := &e.session.Scores
	if e.tx != nil {
		list = &e.tx.Scores
	}
	*list = e.addScores(append([]Score(nil), *list...))
}

// String writes the score with its sign, as in "spam=+1.5".
func (s Score) String() string {
	n, sign := s.Milli, "+"
	if n < 0 {
		n, sign = -n, "-"
	}
	out := s.Key + "=" + sign + strconv.FormatInt(n/1000, 10)
	if frac := n % 1000; frac != 0 {
		digits := strconv.FormatInt(1000+frac, 10)[1:]
		for digits[len(digits)-1] == '0' {
			digits = digits[:len(digits)-1]
		}
		out += "." + digits
	}
	return out
}
