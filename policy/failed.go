package policy

import "time"

// failed.go: failures that show only after a filter has returned.

// Failed answers for a filter whose verdict or edits turned out to be impossible
// afterwards, such as an added recipient that nobody takes: what the OnError of its link
// makes of err at stage. The zero Verdict means that the failure is to be overlooked.
func (r *Run) Failed(filter string, stage Stage, err error) Decision {
	for i := range r.links {
		l := &r.links[i]
		if l.name != filter {
			continue
		}
		err = because(CauseVerdict, err)
		l.Breaker.failed(stage, r.session.Remote.Addr(), time.Now(), granted, err)
		v := l.onError[stage].verdict(stage, err)
		r.step = Step{Filter: filter, Stage: stage, Verdict: v, Err: err, Late: true}
		r.tell(l)
		r.step = Step{}
		return Decision{v, filter}
	}
	return Decision{}
}
