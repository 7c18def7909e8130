;; Exceptions leave functions by a way on which nobody counts. They are not among the
;; proposals we take: it must not load.
(module
  (memory (export "memory") 1)
  (tag $e)
  (func $f (throw $e))
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (loop $l (try (do (call $f)) (catch $e (br $l)))) (i64.const 0)))
