package delivery

import (
	"errors"
	"math"
	"math/rand/v2"
	"time"
)

// schedule.go: when to try again, when to tell the sender, and when to give up.

// Schedule says when recipients that could not be served are tried again. The zero value of
// each field means its default. RFC 5321, Section 4.5.4.1 asks for half an hour between two
// tries and four to five days in all; the first tries come sooner, since greylisting and
// restarts are over in minutes.
type Schedule struct {
	// First is the wait after the first try. Default 5 minutes.
	First time.Duration
	// Factor is how much longer each wait is than the one before. Default 2.
	Factor float64
	// Max is the longest wait. Default 6 hours.
	Max time.Duration
	// Expire is how long a message is tried. Default 5 days.
	Expire time.Duration
	// Notify is when the sender is told of the delay, once. Default 4 hours; negative is
	// never.
	Notify time.Duration
}

// jitter is how far a wait may be off, so that what failed together is not tried together
// for ever.
const jitter = 0.1

// Validate returns every problem, joined.
func (s Schedule) Validate() error {
	var errs []error
	if s.First < 0 || s.Max < 0 || s.Expire < 0 {
		errs = append(errs, errors.New("schedule: must not be negative"))
	}
	if s.Factor != 0 && (s.Factor < 1 || s.Factor > 100 || math.IsNaN(s.Factor)) {
		errs = append(errs, errors.New("schedule: the factor must be between 1 and 100"))
	}
	d := s.withDefaults()
	if d.First > d.Max {
		errs = append(errs, errors.New("schedule: the first wait is longer than the longest"))
	}
	if d.Max > d.Expire {
		errs = append(errs, errors.New("schedule: the longest wait is longer than a message is kept"))
	}
	return errors.Join(errs...)
}

func (s Schedule) withDefaults() Schedule {
	setDefault(&s.First, 5*time.Minute)
	setDefault(&s.Factor, 2)
	setDefault(&s.Max, 6*time.Hour)
	setDefault(&s.Expire, 5*24*time.Hour)
	setDefault(&s.Notify, 4*time.Hour)
	return s
}

// next returns when to try again after so many tries, of which there is one at least.
func (s Schedule) next(now time.Time, tries int) time.Time {
	wait := float64(s.First) * math.Pow(s.Factor, float64(max(tries-1, 0)))
	wait = min(wait, float64(s.Max))
	wait *= 1 + jitter*(2*rand.Float64()-1)
	return now.Add(time.Duration(wait))
}
