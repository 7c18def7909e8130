;; A start section that does not come back, in front of all that the host calls.
(module
  (import "mg1" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $start (loop (drop (call $log (i32.const 3) (i32.const 0) (i32.const 65536))) (br 0)))
  (start $start)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
