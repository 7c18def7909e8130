package policy

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// Who of the filters a, b and c is shown which of three pieces of a body, by what a and b say
// to the first.
func TestDecideChunk(t *testing.T) {
	fail := errors.New("failed")
	for _, tt := range []struct {
		why           string
		first, second Verdict
		err           error // of the second
		want          string
		action        Action
	}{
		{"no objection", Verdict{}, Verdict{}, nil, "abc abc abc", Continue},
		{"skip is for the pieces alone", Verdict{Action: Skip}, Verdict{}, nil, "abc bc bc", Continue},
		{"held goes on", Verdict{Action: Quarantine}, Verdict{}, nil, "abc abc abc", Quarantine},
		{"who was not asked has a gap", Verdict{}, Verdict{Action: Accept}, nil, "ab ab ab", Continue},
		{"discarded ends the asking, too", Verdict{}, Verdict{Action: Discard}, nil, "ab ab ab", Discard},
		{"who failed has lost the front", Verdict{}, Verdict{}, fail, "abc ac ac", Continue},
	} {
		seen := ""
		link := func(name string, v Verdict, err error) Link {
			return Link{MayAccept: true, OnError: OnErrorAccept, Filter: Func(name, StagesOf(StageChunk, StageMessage),
				func(_ context.Context, e *Event) (Verdict, error) {
					if e.Stage == StageMessage {
						equal(t, "piece of a whole message", e.Chunk, (*Chunk)(nil))
						return Verdict{}, nil
					}
					seen += name
					if e.Chunk.Offset > 0 {
						return Verdict{}, nil
					}
					equal(t, "piece", string(e.Chunk.Data), "piece 0")
					return v, err
				})}
		}
		asked := ""
		r := NewChain(link("a", tt.first, nil), link("b", tt.second, tt.err), link("c", Verdict{}, nil)).Open(new(Session), func(s Step) {
			if s.Stage == StageMessage {
				asked += s.Filter
			}
		})
		tx := newTx(t)
		var first Decision
		for i := range 3 {
			d := r.DecideChunk(t.Context(), tx, int64(i)*MaxChunk, fmt.Appendf(nil, "piece %d", i))
			if i == 0 {
				first = d
			}
			seen += " "
		}
		r.Decide(t.Context(), StageMessage, tx)
		equal(t, tt.why+": seen", seen, tt.want+" ")
		equal(t, tt.why+": action", first.Action, tt.action)
		equal(t, tt.why+": asked about the message", asked, "abc")
		r.EndTransaction()
		seen = ""
		r.DecideChunk(t.Context(), newTx(t), MaxChunk, nil)
		equal(t, tt.why+": the next message", seen, "abc")
	}
}

// Nobody makes pieces that nobody wants.
func TestWantsChunks(t *testing.T) {
	skips := func(_ context.Context, e *Event) (Verdict, error) { return Verdict{Action: Skip}, nil }
	r := NewChain(Link{Filter: Func("f", StagesOf(StageMail, StageMessage), skips)}).Open(new(Session), nil)
	equal(t, "without a filter for it", r.WantsChunks(), false)
	equal(t, "decision", r.DecideChunk(t.Context(), newTx(t), 0, nil), Decision{})
	r = NewChain(Link{Filter: Func("f", StagesOf(StageMail, StageChunk), skips)}).Open(new(Session), nil)
	equal(t, "with one", r.WantsChunks(), true)
	r.Decide(t.Context(), StageMail, newTx(t))
	equal(t, "that skipped the transaction", r.WantsChunks(), false)
	r.EndTransaction()
	equal(t, "in the next", r.WantsChunks(), true)
}
