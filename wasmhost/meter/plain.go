package meter

import "slices"

// Plain returns the module as it came, with its data segments joined and without the
// custom sections that nobody needs.
//
// TODO(wasmhost): it goes when instances run what Rewrite returns.
func (m *Module) Plain() []byte {
	w := &rewriter{m: m, out: []byte("\x00asm\x01\x00\x00\x00")}
	for id := byte(secType); id <= secElement; id++ {
		switch {
		case id != secStart:
			w.copySection(id)
		case m.start >= 0:
			w.section(secStart, appendUint(nil, uint32(m.start)))
		}
	}
	join := m.used.data == 0 && !slices.ContainsFunc(m.data, func(d dataSegment) bool { return !d.active || d.imported })
	if m.dataCount >= 0 && !join {
		w.section(secDataCount, appendUint(nil, uint32(m.dataCount)))
	}
	w.copySection(secCode)
	if join {
		w.joinedData()
	} else {
		w.copySection(secData)
	}
	for _, s := range m.manifest {
		w.section(secCustom, s)
	}
	if len(m.names) > 0 {
		w.section(secCustom, nameSection(m.names))
	}
	return w.out
}

func (w *rewriter) joinedData() {
	var list []Segment
	for _, d := range w.m.data {
		list = append(list, d.Segment)
	}
	list = joinSegments(list)
	b := appendUint(nil, uint32(len(list)))
	for _, s := range list {
		b = append(appendInt(append(b, 0, opI32Const), int64(int32(s.Offset))), opEnd)
		b = append(appendUint(b, uint32(len(s.Bytes))), s.Bytes...)
	}
	if len(list) > 0 {
		w.section(secData, b)
	}
}
