package gateway

import (
	"sync/atomic"
	"time"
)

// seldom.go: lines of the log that strangers could repeat without end.

// lineEvery is the least time between two of them.
const lineEvery = time.Minute

// seldom tells whether it is time for another line. The zero value is ready; it is safe for
// concurrent use.
type seldom struct{ last atomic.Int64 }

// due tells whether a line may be written at now, and takes note of it.
func (s *seldom) due(now time.Time) bool {
	last, t := s.last.Load(), now.UnixNano()
	return (last == 0 || t-last >= int64(lineEvery)) && s.last.CompareAndSwap(last, t)
}
