package meter

import (
	"cmp"
	"slices"
)

// segments.go joins data segments. Go's linker leaves out every run of zeros, so that a
// guest has more than twenty thousand of them. Fresh memory is zero, so segments with a
// few zeros between them may as well be one.

const (
	maxGap  = 256     // octets of zeros that join two segments
	maxZero = 1 << 20 // octets of zeros that a module may grow by
)

// joinSegments returns fewer segments that make the same memory. Where some overlap, their
// order matters, and they are returned as they are.
func joinSegments(segments []Segment) []Segment {
	// Of those at one place the empty ones come first: they overlap nothing.
	order := func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(len(a.Bytes), len(b.Bytes)))
	}
	sorted := segments
	if !slices.IsSortedFunc(segments, order) {
		sorted = slices.SortedFunc(slices.Values(segments), order)
	}
	for i := 1; i < len(sorted); i++ {
		if uint64(sorted[i].Offset) < sorted[i-1].end() {
			return segments
		}
	}
	zeros := 0
	var joined []Segment
	for i := 0; i < len(sorted); {
		first := i
		size := len(sorted[i].Bytes)
		for i++; i < len(sorted); i++ {
			gap := int(uint64(sorted[i].Offset) - sorted[i-1].end())
			if gap > maxGap || zeros+gap > maxZero {
				break
			}
			zeros += gap
			size += gap + len(sorted[i].Bytes)
		}
		joined = append(joined, joinRun(sorted[first:i], size))
	}
	return joined
}

// joinRun makes one segment of size octets.
func joinRun(run []Segment, size int) Segment {
	s := Segment{run[0].Offset, make([]byte, size)}
	for _, part := range run {
		copy(s.Bytes[part.Offset-s.Offset:], part.Bytes)
	}
	return s
}
