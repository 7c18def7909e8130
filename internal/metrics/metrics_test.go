package metrics

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/penstock/penstock/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// scrape asks as Prometheus does.
func scrape(t *testing.T, r *Registry) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func one(n float64) func(*Out) { return func(o *Out) { o.Value(n) } }

func TestNamesAreHeldAgainstTheForm(t *testing.T) {
	for _, tt := range []struct {
		f    Family
		want string // in the error; empty for none
	}{
		{Family{Name: "penstock_gateway_sessions_total", Help: "h", Collect: one(1)}, ""},
		{Family{Name: "penstock_gateway_connections", Help: "h", Kind: Gauge, Collect: one(1)}, ""},
		{Family{Name: "penstock_gateway_sessions", Help: "h", Collect: one(1)}, "ends in _total"},
		{Family{Name: "penstock_policy_call_total", Help: "h", Kind: Durations, Collect: one(1)}, "ends in _seconds"},
		{Family{Name: "penstock_total", Help: "h", Collect: one(1)}, "penstock_<package>"},
		{Family{Name: "gateway_sessions_total", Help: "h", Collect: one(1)}, "penstock_<package>"},
		{Family{Name: "penstock_Gateway_sessions_total", Help: "h", Collect: one(1)}, "penstock_<package>"},
		{Family{Name: "penstock_a_b_total", Collect: one(1)}, "no help"},
		{Family{Name: "penstock_a_b_total", Help: "h"}, "nothing to collect"},
		{Family{Name: "penstock_a_b_total", Help: "h", Labels: []string{"Peer"}, Collect: one(1)}, "no name"},
	} {
		err := New().Add(tt.f)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.f, err, tt.want)
		}
	}
	r := New()
	twice := Family{Name: "penstock_a_b_total", Help: "h", Collect: one(1)}
	if err := r.Add(twice, twice); err == nil || !strings.Contains(err.Error(), "penstock_a_b_total") {
		t.Errorf("the same name twice: %v", err)
	}
}

// TestScrape: values are read when they are asked for, and the runtime's own are there.
func TestScrape(t *testing.T) {
	r := New()
	sessions := 0.0
	var h Histogram
	h.Observe(3 * time.Microsecond)
	err := r.Add(
		Family{Name: "penstock_gateway_sessions_total", Help: "Sessions.", Collect: func(o *Out) { o.Value(sessions) }},
		Family{Name: "penstock_gateway_connections", Help: "Open.", Kind: Gauge, Labels: []string{"listener"}, Collect: func(o *Out) {
			o.Value(2, "mx")
			o.Value(3, "bad\xff\"\n")
		}},
		Family{Name: "penstock_policy_call_seconds", Help: "Calls.", Kind: Durations, Labels: []string{"filter"}, Collect: func(o *Out) { o.Histogram(&h, "f") }},
	)
	if err != nil {
		t.Fatal(err)
	}
	scrape(t, r)
	sessions = 7
	got := scrape(t, r)
	if v := got["penstock_gateway_sessions_total"].Metric[0].Counter.GetValue(); v != 7 {
		t.Errorf("sessions %v, want 7", v)
	}
	values := map[string]float64{}
	for _, m := range got["penstock_gateway_connections"].Metric {
		values[m.Label[0].GetValue()] = m.Gauge.GetValue()
	}
	if values["mx"] != 2 || values["bad?\"\n"] != 3 {
		t.Errorf("connections %v", values)
	}
	hist := got["penstock_policy_call_seconds"].Metric[0].Histogram
	if hist.GetSampleCount() != 1 || hist.GetSampleSum() != 3e-6 {
		t.Errorf("histogram %v", hist)
	}
	for _, name := range []string{"go_goroutines", "process_start_time_seconds", "penstock_metrics_left_out_total"} {
		if got[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestTooManySeries: a label that got out of hand costs the rest of its own family.
func TestTooManySeries(t *testing.T) {
	r := New()
	err := r.Add(Family{Name: "penstock_a_wild_total", Help: "h", Labels: []string{"peer"}, Collect: func(o *Out) {
		for i := range MaxSeries + 5 {
			o.Value(1, fmt.Sprint(i))
		}
	}}, Family{Name: "penstock_a_wrong_total", Help: "h", Labels: []string{"a"}, Collect: func(o *Out) { o.Value(1) }},
		Family{Name: "penstock_a_tame_total", Help: "h", Collect: one(1)})
	if err != nil {
		t.Fatal(err)
	}
	scrape(t, r)
	got := scrape(t, r)
	if n := len(got["penstock_a_wild_total"].Metric); n != MaxSeries {
		t.Errorf("%d series, want %d", n, MaxSeries)
	}
	if v := got["penstock_metrics_left_out_total"].Metric[0].Counter.GetValue(); v < 5 {
		t.Errorf("left out %v, want 5 or more", v)
	}
	if got["penstock_a_tame_total"] == nil || got["penstock_a_wrong_total"] != nil {
		t.Error("one family that is wrong took another with it")
	}
}

func TestBuckets(t *testing.T) {
	for _, d := range []time.Duration{
		-time.Second, 0, 1, unit, unit + 1, time.Microsecond, time.Microsecond + 1, 1250, 1251, 2 * time.Microsecond, 2*time.Microsecond + 1,
		3 * time.Microsecond, 4 * time.Microsecond, 5 * time.Microsecond, time.Millisecond, time.Second,
		1 << 23 * time.Microsecond, 1<<23*time.Microsecond + 1, time.Hour, 1<<63 - 1,
	} {
		i, at := bucketOf(max(d, 0)), max(d, 0)
		if i < buckets && bound(i) < at || i > 0 && i <= buckets && bound(i-1) >= at {
			t.Errorf("%v: bucket %d", d, i)
		}
		var h Histogram
		h.Observe(d)
		count, _, upTo := h.Snapshot()
		for n := range doubled + 1 {
			b := time.Microsecond << n
			if in, ok := upTo[b.Seconds()]; !ok || (in == 1) != (at <= b) {
				t.Errorf("%v: up to %v it is %v", d, b, in)
			}
		}
		if count != 1 || len(upTo) != doubled+1 {
			t.Errorf("%v: count %d, %d bounds", d, count, len(upTo))
		}
	}
	for i := 1; i < buckets; i++ {
		if bucketOf(bound(i)) != i || bucketOf(bound(i)+1) != i+1 {
			t.Fatalf("bucket %d: its bound %v is in %d, what follows in %d", i, bound(i), bucketOf(bound(i)), bucketOf(bound(i)+1))
		}
	}
}

// TestQuantile: the answer is off by an eighth at most, from a few hundred nanoseconds to
// seconds.
func TestQuantile(t *testing.T) {
	var empty Histogram
	if q := empty.Quantile(0.5); q != 0 {
		t.Errorf("of nothing: %v", q)
	}
	for _, scale := range []time.Duration{5 * time.Nanosecond, time.Microsecond, time.Millisecond} {
		var a, b, h Histogram
		for i := range 1000 {
			h := &a
			if i%2 == 0 {
				h = &b
			}
			h.Observe(time.Duration(i+1) * scale)
		}
		h.Merge(&a)
		h.Merge(&b)
		if h.Count() != 1000 || h.Sum() != 500500*scale {
			t.Errorf("count %d, sum %v", h.Count(), h.Sum())
		}
		for _, q := range []float64{0.1, 0.5, 0.9, 0.99, 1} {
			want := time.Duration(q*1000) * scale
			if got := h.Quantile(q); got < want*7/8 || got > want*9/8 {
				t.Errorf("%v of up to %v: %v, want about %v", q, 1000*scale, got, want)
			}
		}
	}
	var long Histogram
	long.Observe(time.Hour)
	if q := long.Quantile(0.5); q != 1<<23*time.Microsecond {
		t.Errorf("of an hour: %v", q)
	}
}

// BenchmarkObserve is what a duration costs on the way of a message.
func BenchmarkObserve(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(7 * time.Microsecond)
	}
}
