// Package metrics gives out the gateway's figures in the form of Prometheus.
//
// # The ideas
//
// The parts of the gateway count with atomics of their own, whether anybody looks or not.
// Nothing here is on the way of a message: a [Family] reads those counters when it is
// asked, so that no event is counted twice and a scrape is the only cost there is.
//
// Names are penstock_<package>_<what>_<unit>. A label's values must be few and must come
// from the configuration or from a list in the code: never an address, a domain or
// anything else that a peer chooses, since each value is kept for as long as the process
// lives. [Registry.Add] holds names against the form; what a label's values are it cannot
// know, and so it stops a family at [MaxSeries].
package metrics

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Kind says how the values of a family behave.
type Kind int

// The kinds.
const (
	Counter   Kind = iota // only grows; the name ends in _total
	Gauge                 // goes up and down
	Durations             // a Histogram; the name ends in _seconds
)

// MaxSeries is how many combinations of label values a family gives out; the rest is left
// out, and penstock_metrics_left_out_total counts it.
const MaxSeries = 10000

// Family is one metric with all its series.
type Family struct {
	// Name is the full name, penstock_<package>_<what>_<unit>.
	Name string
	// Help is one sentence on what is counted.
	Help string
	// Kind is how the values behave.
	Kind Kind
	// Labels are the names of the labels, none for a single series.
	Labels []string
	// Collect calls out once for each series. It is called at each scrape, by several
	// goroutines at once, and must not block.
	Collect func(out *Out)
}

// Out takes the series of one family in one scrape.
type Out struct {
	family *Family
	desc   *prometheus.Desc
	ch     chan<- prometheus.Metric
	series int
	left   int // left out
}

// Value gives out a series of a Counter or Gauge: its value, and the values of the labels
// in their order.
func (o *Out) Value(v float64, labels ...string) {
	typ := prometheus.CounterValue
	if o.family.Kind == Gauge {
		typ = prometheus.GaugeValue
	}
	m, err := prometheus.NewConstMetric(o.desc, typ, v, clean(labels)...)
	o.send(m, err)
}

// Counted is a Histogram, or what shows one.
type Counted interface {
	// Snapshot returns how many there are, their sum in seconds, and how many are not above
	// each of some bounds in seconds.
	Snapshot() (count uint64, sum float64, upTo map[float64]uint64)
}

// Histogram gives out a series of Durations.
func (o *Out) Histogram(h Counted, labels ...string) {
	count, sum, buckets := h.Snapshot()
	m, err := prometheus.NewConstHistogram(o.desc, count, sum, buckets, clean(labels)...)
	o.send(m, err)
}

// send passes a series on. One that does not fit its family becomes the error of the scrape.
func (o *Out) send(m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(o.desc, err)
	}
	if o.series++; o.series > MaxSeries {
		o.left++
		return
	}
	o.ch <- m
}

// clean makes label values valid UTF-8, which the format asks for.
func clean(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?")
	}
	return labels
}

// Registry holds families and gives them out. It is safe for concurrent use.
type Registry struct {
	reg     *prometheus.Registry
	leftOut prometheus.Counter
}

// New returns a Registry with the figures of the Go runtime and of the process.
func New() *Registry {
	r := &Registry{reg: prometheus.NewPedanticRegistry(), leftOut: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "penstock_metrics_left_out_total",
		Help: "Series that a scrape left out because their family has too many.",
	})}
	// These three have names of their own, of which none can be there twice.
	r.reg.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), r.leftOut)
	return r
}

// goodName tells whether name is penstock_ and two words or more of small letters and digits.
func goodName(name string) bool {
	words := strings.Split(name, "_")
	if len(words) < 3 || words[0] != "penstock" {
		return false
	}
	for _, w := range words {
		if w == "" || strings.Trim(w, lower+"0123456789") != "" || !strings.Contains(lower, w[:1]) {
			return false
		}
	}
	return true
}

const lower = "abcdefghijklmnopqrstuvwxyz"

// Add registers families. The error joins what is wrong with their names and labels, and
// says which are there already; the others are registered all the same.
func (r *Registry) Add(families ...Family) error {
	var errs []error
	for _, f := range families {
		err := f.check()
		if err == nil {
			err = r.reg.Register(&collector{family: &f, leftOut: r.leftOut,
				desc: prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("metrics: %s: %w", f.Name, err))
		}
	}
	return errors.Join(errs...)
}

// check returns what is wrong with a family.
func (f Family) check() error {
	suffix := map[Kind]string{Counter: "_total", Durations: "_seconds"}[f.Kind]
	switch {
	case !goodName(f.Name):
		return errors.New("the name is not penstock_<package>_<what>_<unit>")
	case !strings.HasSuffix(f.Name, suffix):
		return fmt.Errorf("the name of its kind ends in %s", suffix)
	case f.Help == "":
		return errors.New("no help")
	case f.Collect == nil:
		return errors.New("nothing to collect")
	}
	for _, l := range f.Labels {
		if l == "" || strings.Trim(l, lower+"_") != "" || l[0] == '_' {
			return fmt.Errorf("label %q is no name", l)
		}
	}
	return nil
}

// collector is a family as the library wants it.
type collector struct {
	family  *Family
	desc    *prometheus.Desc
	leftOut prometheus.Counter
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := &Out{family: c.family, desc: c.desc, ch: ch}
	c.family.Collect(o)
	c.leftOut.Add(float64(o.left))
}

// Handler answers a scrape. A series that cannot be given out costs the scrape nothing but
// that series.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	})
}
