package policy

// failed.go: failures that show only after a filter has returned.

// Failed answers for a filter whose verdict or edits turned out to be impossible
// afterwards, such as an added recipient that nobody takes: what the OnError of its link
// makes of err at stage. The zero Verdict means that the failure is to be overlooked.
func (r *Run) Failed(filter string, stage Stage, err error) Decision {
	for i := range r.links {
		if l := &r.links[i]; l.name == filter {
			v := l.OnError.verdict(stage, err)
			if r.observe != nil {
				r.observe(Step{Filter: filter, Stage: stage, Verdict: v, Err: err})
			}
			return Decision{v, filter}
		}
	}
	return Decision{}
}
